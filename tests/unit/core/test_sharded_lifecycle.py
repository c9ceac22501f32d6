"""Replicas that are sharded over several workers: they live and die as one."""

from __future__ import annotations

import pytest

from xi_core.api.control import LaunchSpec, LaunchState, ReplicaStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import LEASE, RESTARTS, Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.errors import NoPlacement
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan, RankAddress, Rendezvous
from xi_plugins.schedulers.idle_first import IdleFirst

TIMEOUT = 100.0


def wanted(n_worker: int = 2, n_gpu: int = 0, replica: int = 1) -> Wanted:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    spec = LaunchSpec(model_name="toy", model_uid="m", replica=replica, n_gpu=n_gpu, n_worker=n_worker)
    return Wanted(uid="m", spec=spec, model=model, engine="e", n_gpu=n_gpu, created=1)


def member(name: str, devices: int = 0, incarnation: str = "i1") -> Member:
    return Member(name, incarnation, [Device(id=f"cuda:{n}", kind="cuda") for n in range(devices)], ("e",))


def cluster(*names: str, devices: int = 0) -> Lifecycle:
    core = Lifecycle(IdleFirst(), "e", launch_timeout=TIMEOUT, grace=5.0)
    for name in names:
        core.worker_joined(0.0, member(name, devices), [])
    return core


def starts(actions: list[Action]) -> list[Start]:
    return [a for a in actions if isinstance(a, Start)]


def stops(actions: list[Action]) -> list[tuple[str, int]]:
    return [(a.worker, a.rank) for a in actions if isinstance(a, Stop)]


def record(start: Start, rank: int, state: LaunchState = "READY", error: str | None = None) -> ReplicaRecord:
    world = tuple(RankAddress(rank=n, worker=a.worker, host="h", devices=a.devices) for n, a in enumerate(start.assignments))
    plan = LaunchPlan(
        uid="m",
        replica_id=start.replica_id,
        incarnation=start.incarnation,
        engine=EngineRef(name="e", path="x:X"),
        artifact=Artifact(format="toy", path="/x"),
        endpoint="ipc:///x",
        devices=list(start.assignments[rank].devices),
        rendezvous=Rendezvous(rank=rank, world=world),
    )
    status = ReplicaStatus(replica_id=start.replica_id, state=state, worker=start.assignments[rank].worker, pid=7 + rank, error=error)
    what = wanted(len(world), len(plan.devices))
    manifest = of_fields(chat={}) if state == "READY" else None
    return ReplicaRecord(plan=plan, spec=what.spec, status=status, created=1, model=what.model, endpoint="ipc:///x", manifest=manifest)


def ready(core: Lifecycle, start: Start, now: float = 0.0) -> None:
    for rank, assignment in enumerate(start.assignments):
        core.replica_updated(now, assignment.worker, record(start, rank))


def state(core: Lifecycle) -> str:
    found = core.find("m")
    return found.state if found else "GONE"


def test_one_assignment_per_worker_and_ready_when_every_rank_is() -> None:
    core = cluster("w1", "w2", "w3", devices=2)
    (start,) = starts(core.accept(0.0, wanted(n_worker=2, n_gpu=2)))
    assert [(a.worker, a.devices) for a in start.assignments] == [("w1", ("cuda:0", "cuda:1")), ("w2", ("cuda:0", "cuda:1"))]
    core.replica_updated(1.0, "w1", record(start, 0))
    assert state(core) == "PENDING"
    core.replica_updated(1.0, "w2", record(start, 1, "LOADING"))
    assert state(core) == "LOADING"
    core.replica_updated(2.0, "w2", record(start, 1))
    assert state(core) == "READY"
    found = core.find("m")
    assert found is not None
    (replica,) = found.status().replicas
    assert [(r.rank, r.worker, r.pid, r.state) for r in replica.ranks] == [(0, "w1", 7, "READY"), (1, "w2", 8, "READY")]


def test_too_few_workers_reserve_nothing() -> None:
    core = cluster("w1")
    with pytest.raises(NoPlacement, match="2 workers with the engine e are needed, and 1 can take a rank"):
        core.accept(0.0, wanted())
    assert core.listed() == []


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_rank_takes_the_others_with_it_and_all_start_anew_together(dead: int) -> None:
    core = cluster("w1", "w2")
    (start,) = starts(core.accept(0.0, wanted()))
    ready(core, start)
    other = 1 - dead
    actions = core.replica_gone(1.0, start.incarnation, "boom", rank=dead)
    assert stops(actions) == [(start.assignments[other].worker, other)]
    assert not starts(actions)
    found = core.find("m")
    assert found is not None
    assert found.route().replicas == []
    assert core.replica_gone(2.0, start.incarnation, rank=other) == []
    wake = core.next_wake()
    assert wake == 2.5
    (again,) = starts(core.tick(wake))
    assert again.incarnation != start.incarnation
    assert len(again.assignments) == 2
    assert f"rank {dead} on" in (found.replicas[0].error or "")
    ready(core, again, 3.0)
    assert state(core) == "READY"


def test_a_word_of_the_old_life_is_answered_with_stop() -> None:
    core = cluster("w1", "w2")
    (start,) = starts(core.accept(0.0, wanted()))
    core.replica_gone(1.0, start.incarnation, "boom", rank=0)
    core.replica_gone(1.0, start.incarnation, rank=1)
    assert stops(core.replica_updated(1.1, "w2", record(start, 1))) == [("w2", 1)]


def test_a_late_word_while_the_life_ends_doesn_t_make_it_ready() -> None:
    core = cluster("w1", "w2")
    (start,) = starts(core.accept(0.0, wanted()))
    ready(core, start)
    core.replica_gone(1.0, start.incarnation, "boom", rank=0)
    core.replica_updated(1.0, "w2", record(start, 1))
    assert state(core) != "READY"


def test_crash_loop_counts_lives_not_ranks() -> None:
    core, now = cluster("w1", "w2"), 0.0
    (start,) = starts(core.accept(now, wanted()))
    for _ in range(RESTARTS):
        ready(core, start, now)
        core.replica_gone(now, start.incarnation, "boom", rank=1)
        core.replica_gone(now, start.incarnation, rank=0)
        now = core.next_wake() or now
        (start,) = starts(core.tick(now))
    assert state(core) != "FAILED"
    core.replica_gone(now, start.incarnation, "boom", rank=1)
    core.replica_gone(now, start.incarnation, rank=0)
    assert state(core) == "FAILED"


def test_a_lost_worker_moves_all_ranks_together() -> None:
    core = cluster("w1", "w2", "w3")
    (start,) = starts(core.accept(0.0, wanted()))
    ready(core, start)
    core.worker_left(1.0, "w2")
    assert core.tick(1.0 + LEASE) == []
    assert state(core) == "READY"
    actions = core.tick(1.0 + 2 * LEASE)
    assert stops(actions) == [("w1", 0)]
    (again,) = starts(core.replica_gone(5.0, start.incarnation, rank=0))
    assert [a.worker for a in again.assignments] == ["w1", "w3"]
    assert stops(core.worker_joined(9.0, member("w2"), [record(start, 1)])) == [("w2", 1)]


def test_without_a_place_elsewhere_a_sharded_replica_waits_for_its_worker() -> None:
    core = cluster("w1", "w2")
    (start,) = starts(core.accept(0.0, wanted()))
    ready(core, start)
    core.worker_left(1.0, "w2")
    assert core.tick(1.0 + 2 * LEASE) == []
    assert core.worker_joined(6.0, member("w2"), [record(start, 1)]) == []
    assert state(core) == "READY"


def test_a_worker_that_started_anew_ends_the_ranks_elsewhere_without_counting_a_death() -> None:
    core = cluster("w1", "w2")
    (start,) = starts(core.accept(0.0, wanted()))
    ready(core, start)
    core.worker_left(1.0, "w1")
    assert stops(core.worker_joined(1.5, member("w1", incarnation="i2"), [])) == [("w2", 1)]
    (again,) = starts(core.replica_gone(2.0, start.incarnation, rank=1))
    found = core.find("m")
    assert found is not None
    assert found.replicas[0].deaths == []
    ready(core, again, 3.0)
    assert state(core) == "READY"


def test_a_forgetful_supervisor_adopts_rank_by_rank() -> None:
    old = cluster("w1", "w2")
    (start,) = starts(old.accept(0.0, wanted()))
    core = Lifecycle(IdleFirst(), "e2", launch_timeout=TIMEOUT, grace=5.0, settled_at=3.0)
    assert core.worker_joined(1.0, member("w2"), [record(start, 1)]) == []
    assert state(core) != "READY"
    assert core.worker_joined(1.5, member("w1"), [record(start, 0)]) == []
    assert state(core) == "READY"
    assert core.tick(3.0) == []


def test_an_adopted_replica_waits_for_its_other_worker_as_long_as_the_supervisor_settles() -> None:
    (old,) = starts(cluster("w1", "w2").accept(0.0, wanted()))
    core = Lifecycle(IdleFirst(), "e2", launch_timeout=TIMEOUT, grace=5.0, settled_at=3.0)
    core.worker_joined(0.1, member("w3"), [])
    core.worker_joined(0.1, member("w1"), [record(old, 0)])
    assert core.tick(2.7) == []
    assert core.worker_joined(2.8, member("w2"), [record(old, 1)]) == []
    assert state(core) == "READY"


def test_an_adopted_replica_whose_other_rank_is_gone_is_ended_and_relaunched() -> None:
    old = cluster("w1", "w2")
    (start,) = starts(old.accept(0.0, wanted()))
    core = Lifecycle(IdleFirst(), "e2", launch_timeout=TIMEOUT, grace=5.0, settled_at=3.0)
    core.worker_joined(1.0, member("w1"), [record(start, 0)])
    actions = core.worker_joined(1.5, member("w2"), [])
    assert stops(actions) == [("w1", 0)]
    core.replica_gone(2.0, start.incarnation, rank=0)
    (again,) = starts(core.tick(3.0))
    assert len(again.assignments) == 2


def test_an_adopted_replica_whose_other_worker_has_told_that_it_runs_nothing_is_relaunched() -> None:
    old = cluster("w1", "w2")
    (start,) = starts(old.accept(0.0, wanted()))
    core = Lifecycle(IdleFirst(), "e2", launch_timeout=TIMEOUT, grace=5.0, settled_at=3.0)
    core.worker_joined(1.0, member("w2"), [])
    assert stops(core.worker_joined(1.5, member("w1"), [record(start, 0)])) == [("w1", 0)]
    core.replica_gone(2.0, start.incarnation, rank=0)
    (again,) = starts(core.tick(3.0))
    assert len(again.assignments) == 2


def test_terminating_ends_every_rank() -> None:
    core = cluster("w1", "w2")
    (start,) = starts(core.accept(0.0, wanted()))
    ready(core, start)
    assert stops(core.terminate(1.0, "m")) == [("w1", 0), ("w2", 1)]
    core.replica_gone(2.0, start.incarnation, rank=1)
    assert core.has_live("m")
    core.replica_gone(2.0, start.incarnation, rank=0)
    assert not core.has_live("m")


def test_the_others_are_ended_at_once_when_rank_0_has_finished_what_it_ran() -> None:
    core = cluster("w1", "w2", "w3")
    (start,) = starts(core.accept(0.0, wanted(n_worker=3)))
    ready(core, start)
    actions = core.terminate(1.0, "m")
    assert [(a.rank, a.grace) for a in actions if isinstance(a, Stop)] == [(0, 5.0), (1, 5.0), (2, 5.0)]
    assert core.replica_gone(2.0, start.incarnation, rank=2) == []
    actions = core.replica_gone(3.0, start.incarnation, rank=0)
    assert [(a.rank, a.grace) for a in actions if isinstance(a, Stop)] == [(1, 0.0)]
    assert core.replica_gone(4.0, start.incarnation, rank=1) == []
    assert core.find("m") is None
