"""Replicas added, removed and moved while a launch serves; dry runs; placement by pools, configurations and memory."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.api.control import LaunchSpec, ReplicaConfig, ReplicaStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import RESTARTS, Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.placement import Placement, Rejection
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.errors import Conflict, InvalidRequest, ModelNotFound, NoPlacement, WorkerNotFound
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan
from xi_plugins.schedulers.idle_first import IdleFirst
from xi_plugins.schedulers.spread import Spread

GIB = 2**30


def wanted(n_gpu: int = 0, memory: int = 0, share: float = 0.0, exclusive: bool = False, uid: str = "m", **fields: Any) -> Wanted:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    spec = LaunchSpec(model_name="toy", model_uid=uid, n_gpu=n_gpu, **fields)
    return Wanted(
        uid=uid, spec=spec, model=model, engine="e", n_gpu=n_gpu, created=1, memory=memory, memory_share=share, exclusive=exclusive
    )


def member(name: str, devices: int = 0, memory: int = 80 * GIB) -> Member:
    found = [Device(id=f"cuda:{n}", kind="cuda", memory=memory, memory_free=memory) for n in range(devices)]
    return Member(name, "i1", found, ("e",), address=f"host-{name}")


def cluster(*members: Member) -> Lifecycle:
    core = Lifecycle(IdleFirst(), "e", launch_timeout=100.0, grace=5.0, schedulers={"spread": Spread()})
    for one in members:
        core.worker_joined(0.0, one, [])
    return core


def starts(actions: list[Action]) -> list[Start]:
    return [a for a in actions if isinstance(a, Start)]


def stops(actions: list[Action]) -> list[str]:
    return [a.replica_id for a in actions if isinstance(a, Stop)]


def ready(core: Lifecycle, *lives: Start, now: float = 0.0) -> list[Action]:
    actions: list[Action] = []
    for life in lives:
        found = core.find(life.uid)
        assert found is not None
        plan = LaunchPlan(
            uid=life.uid,
            replica_id=life.replica_id,
            incarnation=life.incarnation,
            engine=EngineRef(name="e", path="x:X"),
            artifact=Artifact(format="toy", path="/x"),
            endpoint="ipc:///x",
            devices=list(life.assignments[0].devices),
        )
        status = ReplicaStatus(replica_id=life.replica_id, state="READY", worker=life.assignments[0].worker, pid=7)
        record = ReplicaRecord(
            plan=plan, spec=found.wanted.spec, status=status, created=1, model=found.wanted.model, manifest=of_fields(chat={})
        )
        actions += core.replica_updated(now, life.assignments[0].worker, record)
    return actions


def devices(lives: list[Start]) -> list[str]:
    return [name for life in lives for a in life.assignments for name in a.devices]


def serving(core: Lifecycle) -> list[str]:
    found = core.find("m")
    return [r.replica_id for r in found.route().replicas] if found is not None else []


# ---- scaling ------------------------------------------------------------------------------------


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


# ---- placement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_as_many_replicas_as_devices_give_one_each(count: int) -> None:
    lives = starts(cluster(member("w1", count)).accept(0.0, wanted(n_gpu=1, replica=count)))
    assert sorted(devices(lives)) == [f"cuda:{n}" for n in range(count)]


def test_three_replicas_on_pools_of_two_and_one() -> None:
    lives = starts(cluster(member("w1", 4)).accept(0.0, wanted(n_gpu=1, replica=3, gpu_pool=2)))
    assert devices(lives) == ["cuda:0", "cuda:1", "cuda:0"]
    lives = starts(cluster(member("w1", 4)).accept(0.0, wanted(n_gpu=1, replica=3, gpu_pool=1)))
    assert devices(lives) == ["cuda:0"] * 3


def test_three_on_two_devices_are_refused_where_each_takes_one_only() -> None:
    core = cluster(member("w1", 2))
    with pytest.raises(NoPlacement, match=r"replica 3 of 3 .*cuda:0: holds 1 replica.*cuda:1: holds 1 replica"):
        core.accept(0.0, wanted(n_gpu=1, replica=3, exclusive=True))
    assert core.listed() == []


def test_memory_is_promised_before_it_is_taken_and_given_back() -> None:
    core = cluster(member("w1", 1))
    (first,) = starts(core.accept(0.0, wanted(n_gpu=1, memory=50 * GIB)))
    with pytest.raises(NoPlacement, match=r"50\.0 GiB are needed, 30\.0 of 80\.0 GiB are free"):
        core.accept(0.0, wanted(n_gpu=1, memory=50 * GIB, uid="n"))
    ready(core, first)
    with pytest.raises(NoPlacement):
        core.accept(0.0, wanted(n_gpu=1, memory=50 * GIB, uid="n"))
    core.terminate(1.0, "m")
    core.replica_gone(1.0, first.incarnation)
    assert starts(core.accept(2.0, wanted(n_gpu=1, memory=50 * GIB, uid="n")))


def test_an_engine_that_takes_its_share_of_each_device() -> None:
    core = cluster(member("w1", 2))
    lives = starts(core.accept(0.0, wanted(n_gpu=1, share=0.9, replica=2)))
    assert devices(lives) == ["cuda:0", "cuda:1"]
    with pytest.raises(NoPlacement, match=r"72\.0 GiB are needed"):
        core.accept(0.0, wanted(n_gpu=1, share=0.9, uid="n"))


def test_memory_that_others_use_counts() -> None:
    core = cluster(member("w1", 2))
    core.worker_beat(
        0.0,
        "w1",
        [
            Device(id="cuda:0", kind="cuda", memory=80 * GIB, memory_free=10 * GIB),
            Device(id="cuda:1", kind="cuda", memory=80 * GIB, memory_free=70 * GIB),
        ],
    )
    assert devices(starts(core.accept(0.0, wanted(n_gpu=1, memory=40 * GIB)))) == ["cuda:1"]


def test_a_place_for_each_replica() -> None:
    configs = [ReplicaConfig(worker="w2", gpu_idx=[1]), ReplicaConfig(worker="host-w1")]
    core = cluster(member("w1", 2), member("w2", 2))
    lives = starts(core.accept(0.0, wanted(n_gpu=1, replica=2, replica_config=configs)))
    assert [(s.assignments[0].worker, s.assignments[0].devices) for s in lives] == [("w2", ("cuda:1",)), ("w1", ("cuda:0",))]


def test_spread_goes_across_workers_first() -> None:
    core = cluster(member("w1", 4), member("w2", 1), member("w3", 1))
    lives = starts(core.accept(0.0, wanted(n_gpu=1, replica=4, scheduler="spread")))
    assert [s.assignments[0].worker for s in lives] == ["w1", "w2", "w3", "w1"]


def test_devices_of_one_fast_domain_are_kept_together() -> None:
    one = member("w1", 4)
    for number, device in enumerate(one.devices):
        device.domain = "a" if number in (0, 3) else "b"
    one.devices[0].memory_free = 60 * GIB
    lives = starts(cluster(one).accept(0.0, wanted(n_gpu=2)))
    assert lives[0].assignments[0].devices == ("cuda:1", "cuda:2")


# ---- explaining ---------------------------------------------------------------------------------


def test_a_dry_run_places_all_replicas_and_reserves_nothing() -> None:
    core = cluster(member("w1", 2))
    decisions = core.explain(wanted(n_gpu=1, replica=3, exclusive=True))
    assert [type(d) for d in decisions] == [Placement, Placement, Rejection]
    assert [(v.device, v.taken) for v in decisions[0].verdicts] == [("cuda:0", True), ("cuda:1", False)]
    assert "others rank before it" in decisions[0].verdicts[1].reason
    assert core.listed() == []
    assert devices(starts(core.accept(0.0, wanted(n_gpu=1, exclusive=True)))) == ["cuda:0"]
