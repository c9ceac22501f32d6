"""Who holds which device, over all that befalls a cluster: cases that the simulation has found, each by example."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from xi_core.api.control import LaunchSpec, LaunchState, ReplicaConfig, ReplicaStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Share, Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.placement import Assignment
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.errors import NoPlacement
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan
from xi_plugins.schedulers.idle_first import IdleFirst

GIB = 2**30


def wanted(uid: str = "m", n_gpu: int = 0, memory: int = 0, exclusive: bool = False, **fields: Any) -> Wanted:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    spec = LaunchSpec(model_name="toy", model_uid=uid, n_gpu=n_gpu, **fields)
    return Wanted(uid=uid, spec=spec, model=model, engine="e", n_gpu=n_gpu, created=1, memory=memory, exclusive=exclusive)


def member(name: str, devices: int = 0) -> Member:
    found = [Device(id=f"cuda:{n}", kind="cuda", memory=80 * GIB, memory_free=80 * GIB) for n in range(devices)]
    return Member(name, "i1", found, ("e",))


def cluster(*members: Member, settled_at: float = 0.0) -> Lifecycle:
    core = Lifecycle(IdleFirst(), "e", launch_timeout=100.0, grace=5.0, settled_at=settled_at)
    for one in members:
        core.worker_joined(0.0, one, [])
    return core


def record(start: Start, what: Wanted, state: LaunchState = "READY") -> ReplicaRecord:
    plan = LaunchPlan(
        uid=start.uid,
        replica_id=start.replica_id,
        incarnation=start.incarnation,
        engine=EngineRef(name="e", path="x:X"),
        artifact=Artifact(format="toy", path="/x"),
        endpoint="ipc:///x",
        devices=list(start.assignments[0].devices),
        memory=what.memory,
        exclusive=what.exclusive,
    )
    status = ReplicaStatus(replica_id=start.replica_id, state=state, worker=start.assignments[0].worker, pid=7)
    return ReplicaRecord(plan=plan, spec=what.spec, status=status, created=1, model=what.model, manifest=of_fields(chat={}))


def starts(actions: list[Action]) -> list[Start]:
    return [a for a in actions if isinstance(a, Start)]


def stops(actions: list[Action]) -> list[tuple[str, float]]:
    return [(a.replica_id, a.grace) for a in actions if isinstance(a, Stop)]


def ready(core: Lifecycle, start: Start, what: Wanted, now: float = 0.0) -> list[Action]:
    return core.replica_updated(now, start.assignments[0].worker, record(start, what))


def test_a_copy_that_nobody_wants_holds_its_device_until_it_is_gone() -> None:
    core, what = cluster(member("w1", 1), member("w2", 1)), wanted(n_gpu=1, exclusive=True)
    (old,) = starts(core.accept(0.0, what))
    ready(core, old, what)
    core.worker_left(1.0, "w1")
    (new,) = starts(core.tick(10.0))
    ready(core, new, what, 10.0)
    assert stops(core.worker_joined(11.0, member("w1", 1), [record(old, what)])) == [("m-0", 0.0)]
    with pytest.raises(NoPlacement, match=r"w1 cuda:0: holds 1 replica"):
        core.accept(11.0, wanted("other", n_gpu=1, exclusive=True))
    core.replica_gone(12.0, old.incarnation)
    (other,) = starts(core.accept(12.0, wanted("other", n_gpu=1, exclusive=True)))
    assert other.assignments[0].worker == "w1"


def test_what_waits_takes_the_place_of_such_a_copy_when_it_is_gone() -> None:
    core, what = cluster(settled_at=3.0), wanted("other", n_gpu=1, exclusive=True)
    stray = record(starts(cluster(member("w1", 1)).accept(0.0, wanted(n_gpu=1)))[0], wanted(n_gpu=1), "STOPPING")
    core.restore(0.0, what)
    assert stops(core.worker_joined(1.0, member("w1", 1), [stray])) == [("m-0", 5.0)]
    assert core.tick(3.0) == []
    assert len(starts(core.replica_gone(4.0, stray.plan.incarnation))) == 1


def test_a_device_that_is_held_alone_is_given_to_nobody() -> None:
    core = cluster(member("w1", 1))
    core.accept(0.0, wanted(n_gpu=1, exclusive=True))
    with pytest.raises(NoPlacement, match="allows one per device"):
        core.accept(0.0, wanted("shares", n_gpu=1))


def test_a_launch_that_finds_no_place_leaves_the_reason_of_the_last_one() -> None:
    core = cluster(member("w1"))
    (start,) = starts(core.accept(0.0, wanted()))
    core.replica_gone(1.0, start.incarnation, "the weights are damaged", final=True)
    with pytest.raises(NoPlacement):
        core.accept(2.0, wanted(n_gpu=1))
    found = core.find("m")
    assert found is not None
    assert (found.state, found.error) == ("FAILED", "the weights are damaged")


def test_scaling_down_takes_the_heir_of_a_moving_replica_too() -> None:
    core, what = cluster(member("w1"), member("w2")), wanted(replica=2)
    for life in starts(core.accept(0.0, what)):
        ready(core, life, what)
    heirs = starts(core.drain(1.0, "w1", 60.0))
    assert [heir.replica_id for heir in heirs] == ["m-2"]
    assert ("m-2", 5.0) in stops(core.scale(2.0, "m", 1))
    found = core.find("m")
    assert found is not None
    for replica in list(found.replicas):
        if replica.leaving:
            core.replica_gone(3.0, replica.incarnation)
    assert sum(r.wanted for r in found.replicas) == 1


def test_a_replica_that_is_to_leave_is_told_again_when_its_worker_comes_back() -> None:
    core, what = cluster(member("w1")), wanted(replica=2)
    lives = starts(core.accept(0.0, what))
    for life in lives:
        ready(core, life, what)
    assert stops(core.scale(1.0, "m", 1)) == [("m-0", 5.0)]
    core.worker_left(1.1, "w1")
    assert stops(core.worker_joined(1.5, member("w1"), [record(life, what) for life in lives])) == [("m-0", 5.0)]


def test_a_launch_that_loses_a_replica_to_a_drain_has_a_deadline() -> None:
    core, what = cluster(member("w1")), wanted()
    (life,) = starts(core.accept(0.0, what))
    ready(core, life, what)
    core.drain(1.0, "w1", 10.0)
    core.tick(11.0)
    core.replica_gone(12.0, life.incarnation)
    found = core.find("m")
    assert found is not None
    assert found.deadline == 111.0
    assert core.tick(111.0) == []
    assert (found.end, found.deadline) == ("", 211.0), "it has served, and only misses a worker"
    (again,) = starts(core.undrain(200.0, "w1"))
    assert (again.deadline, found.deadline) == (100.0, 300.0)
    core.tick(300.0)
    assert found.state == "FAILED", "what was tried took too long"


def test_a_restored_launch_adopts_replicas_of_other_numbers() -> None:
    core, what = cluster(settled_at=3.0), wanted(replica=2)
    core.restore(0.0, what)
    lives = starts(cluster(member("w1")).accept(0.0, wanted(replica=3)))
    assert core.worker_joined(1.0, member("w1"), [record(life, what) for life in lives[1:]]) == []
    assert core.tick(3.0) == []
    found = core.find("m")
    assert found is not None
    assert found.state == "READY"
    assert sorted(r.replica_id for r in found.replicas) == ["m-1", "m-2"]


def test_what_takes_a_replicas_place_takes_its_configuration() -> None:
    configs = [ReplicaConfig(gpu_idx=[0]), ReplicaConfig(gpu_idx=[1])]
    core, what = cluster(member("w1", 2), member("w2", 2)), wanted(n_gpu=1, replica=2, replica_config=configs)
    for life in starts(core.accept(0.0, what)):
        ready(core, life, what)
    for heir in starts(core.drain(1.0, "w1", 60.0)):
        ready(core, heir, what, 2.0)
    found = core.find("m")
    assert found is not None
    for replica in list(found.replicas):
        if replica.leaving:
            core.replica_gone(3.0, replica.incarnation)
    assert [r.devices for r in found.replicas] == [("cuda:0",), ("cuda:1",)]


def test_what_is_adopted_holds_what_was_promised_to_it() -> None:
    """And not what goes with its place: after a move, who reports first may get another's."""
    configs = [ReplicaConfig(n_gpu=1), ReplicaConfig(n_gpu=1)]
    what = replace(wanted(n_gpu=1, replica=2, replica_config=configs), shares=[Share(1, 10 * GIB), Share(1, 60 * GIB)])
    core = cluster(settled_at=3.0)
    core.restore(0.0, what)
    moved = Start("m", "m-2", "life-2", (Assignment("w2", ("cuda:0",)),), 100.0, 0, 0)
    core.worker_joined(1.0, member("w2", 1), [record(moved, replace(what, memory=60 * GIB), "LOADING")])
    view = core.view_of("w2")
    assert view is not None
    assert view.devices[0].memory_free == 20 * GIB


def test_a_replica_that_has_loaded_makes_room() -> None:
    core, what = cluster(member("w1", 1)), wanted(n_gpu=1, memory=30 * GIB)
    (life,) = starts(core.accept(0.0, what))
    beat = [Device(id="cuda:0", kind="cuda", memory=80 * GIB, memory_free=50 * GIB)]
    core.worker_beat(1.0, "w1", beat)
    core.restore(1.0, wanted("late", n_gpu=1, memory=40 * GIB))
    assert core.tick(1.0) == []
    assert [start.uid for start in starts(ready(core, life, what, 2.0))] == ["late"]


def test_nothing_is_placed_before_all_that_a_worker_reports_is_taken_over() -> None:
    old = cluster(member("w1", 1), member("w2"))
    what, other = wanted(n_gpu=1, exclusive=True), wanted("other", n_gpu=1, exclusive=True)
    (life,) = starts(old.accept(0.0, what))
    core = cluster(member("w2"), settled_at=0.0)
    core.restore(0.0, other)
    failed = record(Start("x", "x-0", "e-9", life.assignments, 1.0), wanted("x"), "FAILED")
    actions = core.worker_joined(1.0, member("w1", 1), [failed, record(life, what)])
    assert "other" not in [start.uid for start in starts(actions)]


def test_what_changed_is_told_once() -> None:
    core = cluster(member("w1"))
    (start,) = starts(core.accept(0.0, wanted()))
    assert list(core.changes()) == ["m"]
    assert core.changes() == {}
    core.worker_beat(1.0, "w1", [])
    assert core.changes() == {}
    core.terminate(2.0, "m")
    core.replica_gone(3.0, start.incarnation)
    assert [launch.state for launch in core.changes().values() if launch is not None] == ["CANCELLED"]


def test_a_life_that_was_given_up_does_not_come_back() -> None:
    core, what = cluster(member("w1"), member("w2")), wanted()
    (old,) = starts(core.accept(0.0, what))
    ready(core, old, what)
    core.worker_left(1.0, "w1")
    (new,) = starts(core.tick(10.0))
    core.worker_left(10.0, "w2")
    core.worker_joined(11.0, Member("w2", "i2", [], ("other",)), [])
    found = core.find("m")
    assert found is not None
    assert not found.live, new
    assert stops(core.worker_joined(12.0, member("w1"), [record(old, what)])) == [("m-0", 0.0)]


def test_what_takes_another_s_place_moves_on_when_its_own_worker_is_drained() -> None:
    core, what = cluster(member("w1"), member("w2"), member("w3")), wanted()
    (life,) = starts(core.accept(0.0, what))
    ready(core, life, what)
    (heir,) = starts(core.drain(1.0, "w1", 60.0))
    actions = core.drain(2.0, "w2", 60.0)
    assert stops(actions) == [(heir.replica_id, 5.0)]
    assert [start.assignments[0].worker for start in starts(actions)] == ["w3"]
