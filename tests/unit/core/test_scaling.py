"""Replicas added, removed and moved while a launch serves."""

from __future__ import annotations

import pytest
from device_clusters import cluster, member, ready, serving, starts, stops, wanted

from xi_core.api.control import ReplicaConfig
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import RESTARTS, Lifecycle
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.replicas import Action, Stop
from xi_core.errors import Conflict, InvalidRequest, ModelNotFound, NoPlacement, WorkerNotFound
from xi_plugins.schedulers.idle_first import IdleFirst


def test_up_and_down_while_serving() -> None:
    core = cluster(member("w1"))
    ready(core, *starts(core.accept(0.0, wanted())))
    new = starts(core.scale(1.0, "m", 3))
    assert [s.replica_id for s in new] == ["m-1", "m-2"]
    found = core.find("m")
    assert found is not None
    assert found.state == "PENDING"
    assert (found.status().ready_replicas, found.wanted.spec.replica) == (1, 3)
    ready(core, *new)
    assert found.state == "READY"
    assert stops(core.scale(2.0, "m", 1)) == ["m-0", "m-1"]
    assert found.state == "READY"
    assert serving(core) == ["m-2"]
    for replica in list(found.replicas):
        if replica.leaving:
            core.replica_gone(3.0, replica.incarnation)
    assert [r.replica_id for r in found.replicas] == ["m-2"]
    assert [s.replica_id for s in starts(core.scale(4.0, "m", 2))] == ["m-0"]


def test_those_that_do_not_serve_yet_go_first() -> None:
    core = cluster(member("w1"))
    first, _second = starts(core.accept(0.0, wanted(replica=2)))
    ready(core, first)
    assert stops(core.scale(1.0, "m", 1)) == ["m-1"]
    found = core.find("m")
    assert found is not None
    assert found.state == "READY"


def test_no_place_for_more_changes_nothing() -> None:
    core = cluster(member("w1", 1))
    ready(core, *starts(core.accept(0.0, wanted(n_gpu=1, exclusive=True))))
    with pytest.raises(NoPlacement, match="XI_ALLOW_MULTI_REPLICA_PER_GPU=0 allows one per device"):
        core.scale(1.0, "m", 2)
    found = core.find("m")
    assert found is not None
    assert (found.state, found.wanted.spec.replica, len(found.replicas)) == ("READY", 1, 1)


def test_what_can_not_be_scaled() -> None:
    core = cluster(member("w1"))
    with pytest.raises(ModelNotFound):
        core.scale(0.0, "m", 2)
    core.accept(0.0, wanted(replica_config=[ReplicaConfig(worker="w1")]))
    with pytest.raises(InvalidRequest, match="replica: 0 is too few") as caught:
        core.scale(0.0, "m", 0)
    assert caught.value.param == "replica"
    with pytest.raises(Conflict, match="replica_config"):
        core.scale(0.0, "m", 2)
    core.terminate(0.0, "m")
    with pytest.raises(Conflict, match="launch it again"):
        core.scale(0.0, "m", 2)


def test_a_launch_that_was_scaled_takes_back_replicas_that_were_started_before() -> None:
    core = cluster(member("w1"))
    (life,) = starts(core.accept(0.0, wanted()))
    ready(core, life)
    before = core.find("m")
    assert before is not None
    head = before.replicas[0].head
    assert head is not None
    core.scale(1.0, "m", 2)
    core.worker_left(2.0, "w1")
    actions = core.worker_joined(2.1, member("w1"), [head])
    assert "m-0" not in stops(actions)


@pytest.mark.parametrize("first", [0, 1])
def test_after_a_restart_the_replica_that_was_leaving_leaves_and_the_other_serves_on(first: int) -> None:
    core = cluster(member("w1"), member("w2"))
    lives = starts(core.accept(0.0, wanted(replica=2)))
    ready(core, *lives)
    found = core.find("m")
    assert found is not None
    told = [(life.assignments[0].worker, r.head) for life, r in zip(lives, found.replicas, strict=True) if r.head is not None]
    assert stops(core.scale(1.0, "m", 1)) == ["m-0"]
    told[0][1].status.state = "STOPPING"
    again = Lifecycle(IdleFirst(), "f", launch_timeout=100.0, grace=5.0, settled_at=5.0)
    again.restore(2.0, found.wanted)
    actions: list[Action] = []
    for worker, record in (told[first], told[1 - first]):
        actions += again.worker_joined(3.0, member(worker), [record])
    assert [(stop.replica_id, stop.grace) for stop in actions if isinstance(stop, Stop)] == [("m-0", 5.0)]
    assert starts(again.tick(5.0)) == []
    assert serving(again) == ["m-1"]


def restarted_beside_one_that_leaves() -> tuple[Lifecycle, Wanted, ReplicaRecord]:
    """A new supervisor's core; the only launch of the former one, and what its worker tells of its replica, which was told to end."""
    core = cluster(member("w1"))
    ready(core, *starts(core.accept(0.0, wanted())))
    found = core.find("m")
    assert found is not None
    head = found.replicas[0].head
    assert head is not None
    head.status.state = "STOPPING"
    again = Lifecycle(IdleFirst(), "f", launch_timeout=100.0, grace=5.0, settled_at=5.0)
    return again, found.wanted, head


def test_after_a_restart_a_replica_of_a_terminated_launch_keeps_its_grace() -> None:
    again, _, head = restarted_beside_one_that_leaves()
    assert [stop.grace for stop in again.worker_joined(3.0, member("w1"), [head]) if isinstance(stop, Stop)] == [5.0]
    assert again.listed() == []


def test_the_name_of_a_replica_that_is_still_leaving_is_not_used() -> None:
    """Its worker would refuse a second one of that name."""
    again, wanted_before, head = restarted_beside_one_that_leaves()
    again.restore(2.0, wanted_before)
    again.worker_joined(3.0, member("w1"), [head])
    assert [start.replica_id for start in starts(again.tick(5.0))] == ["m-1"]


# ---- draining -----------------------------------------------------------------------------------


def test_a_drained_worker_gives_up_each_replica_when_its_replacement_serves() -> None:
    core = cluster(member("w1"), member("w2"))
    (life,) = starts(core.accept(0.0, wanted()))
    ready(core, life)
    (heir,) = starts(core.drain(1.0, "w1", 60.0))
    assert (heir.replica_id, heir.assignments[0].worker) == ("m-1", "w2")
    found = core.find("m")
    assert found is not None
    assert found.state == "READY"
    assert serving(core) == ["m-0"]
    assert stops(ready(core, heir, now=5.0)) == ["m-0"]
    assert serving(core) == ["m-1"]
    core.replica_gone(6.0, life.incarnation)
    assert core.on("w1") == []
    assert [r.replica_id for r in found.replicas] == ["m-1"]
    with pytest.raises(NoPlacement):
        core.accept(7.0, wanted(uid="other", worker_ip="w1"))
    core.undrain(8.0, "w1")
    assert starts(core.accept(8.0, wanted(uid="other", worker_ip="host-w1")))


def test_without_a_place_elsewhere_it_serves_until_the_time_is_over() -> None:
    core = cluster(member("w1"))
    (life,) = starts(core.accept(0.0, wanted()))
    ready(core, life)
    assert core.drain(1.0, "w1", 60.0) == []
    assert serving(core) == ["m-0"]
    assert core.next_wake() == 61.0
    assert stops(core.tick(61.0)) == ["m-0"]
    core.replica_gone(62.0, life.incarnation)
    (again,) = starts(core.worker_joined(63.0, member("w2"), []))
    assert again.assignments[0].worker == "w2"
    found = core.find("m")
    assert found is not None
    assert len(found.replicas) == found.wanted.spec.replica == 1


def test_a_drain_that_is_undone_ends_nothing() -> None:
    core = cluster(member("w1", 1))
    ready(core, *starts(core.accept(0.0, wanted(n_gpu=1, exclusive=True))))
    assert core.drain(1.0, "w1", 50.0) == []
    assert core.undrain(10.0, "w1") == []
    assert core.next_wake() is None
    assert core.tick(100.0) == []
    found = core.find("m")
    assert found is not None
    assert [r.replica_id for r in found.replicas] == serving(core) == ["m-0"]
    core.drain(101.0, "w1", 50.0)
    assert stops(core.tick(151.0)) == ["m-0"], "a second drain is as the first"


def test_another_time_for_a_drain_holds_for_what_moves_already() -> None:
    core = cluster(member("w1"))
    ready(core, *starts(core.accept(0.0, wanted())))
    core.drain(1.0, "w1", 60.0)
    assert core.drain(2.0, "w1", 600.0) == []
    assert core.next_wake() == 602.0
    assert core.tick(100.0) == []
    core.drain(101.0, "w1", 0.0)
    assert stops(core.tick(101.0)) == ["m-0"]


def test_what_has_begun_to_move_when_a_drain_is_undone_moves_on_for_as_long_as_it_takes() -> None:
    core = cluster(member("w1"), member("w2"))
    ready(core, *starts(core.accept(0.0, wanted())))
    (heir,) = starts(core.drain(1.0, "w1", 50.0))
    core.undrain(10.0, "w1")
    assert core.tick(60.0) == []
    assert serving(core) == ["m-0"]
    assert stops(ready(core, heir, now=61.0)) == ["m-0"]
    assert serving(core) == ["m-1"]


def test_a_replica_on_two_drained_workers_still_moves_when_one_drain_is_undone() -> None:
    core = cluster(member("w1"), member("w2"))
    ready(core, *starts(core.accept(0.0, wanted(n_worker=2))))
    core.drain(1.0, "w1", 50.0)
    core.drain(1.0, "w2", 60.0)
    core.undrain(10.0, "w1")
    assert core.next_wake() == 61.0, "by when w2 is to be empty"


def test_a_replica_that_dies_while_it_moves_leaves_its_place_to_its_heir() -> None:
    core = cluster(member("w1"), member("w2"))
    (life,) = starts(core.accept(0.0, wanted()))
    ready(core, life)
    (heir,) = starts(core.drain(1.0, "w1", 60.0))
    core.replica_gone(2.0, life.incarnation, "boom")
    found = core.find("m")
    assert found is not None
    assert [r.replica_id for r in found.replicas] == ["m-1"]
    assert found.state != "READY"
    ready(core, heir, now=3.0)
    assert found.state == "READY"


def test_an_heir_that_can_not_start_leaves_the_old_one_serving() -> None:
    core, now = cluster(member("w1"), member("w2")), 1.0
    (life,) = starts(core.accept(0.0, wanted()))
    ready(core, life)
    (heir,) = starts(core.drain(now, "w1", 60.0))
    for _ in range(RESTARTS):
        core.replica_gone(now, heir.incarnation, "boom")
        now = core.next_wake() or now
        (heir,) = starts(core.tick(now))
    core.replica_gone(now, heir.incarnation, "boom")
    found = core.find("m")
    assert found is not None
    assert found.state == "READY"
    assert serving(core) == ["m-0"]


def test_only_known_workers_are_drained() -> None:
    core = cluster(member("w1"))
    with pytest.raises(WorkerNotFound, match="no worker 'w9'; workers: w1"):
        core.drain(0.0, "w9", 1.0)
    with pytest.raises(WorkerNotFound):
        core.undrain(0.0, "w9")


def test_a_worker_that_comes_back_is_still_drained() -> None:
    core = cluster(member("w1"))
    core.drain(0.0, "w1", 1.0)
    core.worker_left(1.0, "w1")
    core.worker_joined(2.0, member("w1"), [])
    with pytest.raises(NoPlacement):
        core.accept(3.0, wanted())
