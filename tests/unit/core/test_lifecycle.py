"""The pure core of the supervisor by example. As a state machine: `test_lifecycle_world`."""

from __future__ import annotations

import pytest

from xi_core.api.control import LaunchSpec, ReplicaStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import BACKOFF, KEPT, LEASE, RESTARTS, Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.placement import Assignment, ClusterView, Placement, PlacementRequest, Rejection, Scheduler
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.errors import Conflict, ModelNotFound, NoPlacement
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan

TIMEOUT = 100.0
ENGINE = "fake"


class FirstFit(Scheduler):
    """The first worker that has enough free devices."""

    def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
        for worker in cluster.workers:
            free = [d.device for d in worker.devices if not d.replicas]
            if request.engine in worker.engines and len(free) >= request.n_gpu:
                return Placement(assignments=(Assignment(worker.worker, tuple(free[: request.n_gpu])),))
        return Rejection(reason="no free devices")


def wanted(uid: str = "m", replicas: int = 1, n_gpu: int = 0) -> Wanted:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    spec = LaunchSpec(model_name="toy", model_uid=uid, replica=replicas, n_gpu=n_gpu)
    return Wanted(uid=uid, spec=spec, model=model, engine=ENGINE, n_gpu=n_gpu, created=1, exclusive=True)


def member(name: str = "w1", devices: int = 0) -> Member:
    return Member(name, "i1", [Device(id=f"cuda:{n}", kind="cuda") for n in range(devices)], (ENGINE,))


def record(start: Start, what: Wanted, state: str = "READY", error: str | None = None) -> ReplicaRecord:
    plan = LaunchPlan(
        uid=start.uid,
        replica_id=start.replica_id,
        incarnation=start.incarnation,
        engine=EngineRef(name=ENGINE, path="x:X"),
        artifact=Artifact(format="toy", path="/x"),
        endpoint="ipc:///x",
        exclusive=what.exclusive,
        devices=list(start.assignments[0].devices),
    )
    status = ReplicaStatus(replica_id=start.replica_id, state=state, worker=start.assignments[0].worker, pid=7, error=error)  # type: ignore[arg-type]
    ready = state == "READY"
    return ReplicaRecord(
        plan=plan,
        spec=what.spec,
        status=status,
        created=1,
        model=what.model,
        endpoint="ipc:///x",
        context_length=64,
        slots=2,
        manifest=of_fields(chat={}) if ready else None,
    )


def cluster(devices: int = 0, **options: float) -> Lifecycle:
    made = Lifecycle(FirstFit(), "e", launch_timeout=TIMEOUT, grace=5.0, **options)
    made.worker_joined(0.0, member(devices=devices), [])
    return made


def started(actions: list[Action]) -> list[Start]:
    return [a for a in actions if isinstance(a, Start)]


def stopped(actions: list[Action]) -> list[Stop]:
    return [a for a in actions if isinstance(a, Stop)]


def ready(core: Lifecycle, what: Wanted, now: float = 0.0) -> list[Start]:
    starts = started(core.accept(now, what))
    for start in starts:
        core.replica_updated(now, start.assignments[0].worker, record(start, what))
    return starts


def state(core: Lifecycle, uid: str = "m") -> str:
    found = core.find(uid)
    return found.state if found else "GONE"


def test_ready_when_all_replicas_are() -> None:
    core, what = cluster(), wanted(replicas=2)
    first, second = started(core.accept(0.0, what))
    core.replica_updated(1.0, "w1", record(first, what))
    assert state(core) == "PENDING"
    core.replica_updated(1.0, "w1", record(second, what, "LOADING"))
    assert state(core) == "LOADING"
    core.replica_updated(2.0, "w1", record(second, what))
    assert state(core) == "READY"
    route = core.listed()[0].route()
    assert [r.replica_id for r in route.replicas] == ["m-0", "m-1"]
    assert route.endpoints == ["/v1/chat/completions"]
    assert route.context_length == 64


def test_the_same_spec_is_the_same_launch_and_another_is_a_conflict() -> None:
    core = cluster()
    core.accept(0.0, wanted())
    assert core.accept(1.0, wanted()) == []
    with pytest.raises(Conflict, match="another spec"):
        core.accept(1.0, wanted(replicas=2))


def test_no_placement_leaves_nothing() -> None:
    core = cluster(devices=1)
    with pytest.raises(NoPlacement, match=r"replica 2 of 2.*no free devices"):
        core.accept(0.0, wanted(replicas=2, n_gpu=1))
    assert core.listed() == []
    assert ready(core, wanted(n_gpu=1))[0].assignments == (Assignment("w1", ("cuda:0",)),)


def test_a_scheduler_that_double_books_is_refused() -> None:
    class Careless(FirstFit):
        def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
            return Placement(assignments=(Assignment("w1", ("cuda:0",)),))

    core = Lifecycle(Careless(), "e", launch_timeout=TIMEOUT, grace=5.0)
    core.worker_joined(0.0, member(devices=2), [])
    core.accept(0.0, wanted("a", n_gpu=1))
    with pytest.raises(NoPlacement, match="can't give device 'cuda:0': holds 1 replica"):
        core.accept(0.0, wanted("b", n_gpu=1))


def test_crash_loop_ends_failed_with_the_last_error() -> None:
    core = cluster()
    (start,) = ready(core, wanted())
    now, pauses = 0.0, []
    for n in range(RESTARTS):
        core.replica_gone(now, start.incarnation, f"boom {n}")
        wake = core.next_wake()
        assert wake is not None
        pauses.append(wake - now)
        now = wake
        (start,) = started(core.tick(now))
    assert pauses == [0.5, 1.0, 2.0]
    core.replica_gone(now, start.incarnation, "boom last")
    assert state(core) == "FAILED"
    assert "boom last" in (core.listed()[0].error or "")
    assert not core.has_live("m")


def test_old_deaths_are_forgotten() -> None:
    core = cluster()
    (start,) = ready(core, wanted())
    now = 0.0
    for _ in range(3 * RESTARTS):
        core.replica_gone(now, start.incarnation, "boom")
        now += 70.0
        (start,) = started(core.tick(now))
        core.replica_updated(now, "w1", record(start, wanted()))
    assert state(core) == "READY"


def test_a_load_that_failed_for_a_reason_is_not_tried_again() -> None:
    core = cluster()
    (start,) = started(core.accept(0.0, wanted()))
    core.replica_gone(1.0, start.incarnation, "the weights are damaged", final=True)
    assert (state(core), core.listed()[0].error) == ("FAILED", "the weights are damaged")


def test_terminate_before_ready_cancels_and_frees() -> None:
    core = cluster(devices=1)
    (start,) = started(core.accept(0.0, wanted(n_gpu=1)))
    (stop,) = stopped(core.terminate(1.0, "m"))
    assert stop.grace == 0.0
    assert state(core) == "STOPPING"
    with pytest.raises(Conflict, match="still stopping"):
        core.accept(1.0, wanted(n_gpu=1))
    core.replica_gone(2.0, start.incarnation)
    assert state(core) == "CANCELLED"
    assert started(core.accept(3.0, wanted(n_gpu=1)))


def test_terminate_when_ready_drains_and_unlists() -> None:
    core = cluster()
    (start,) = ready(core, wanted())
    assert stopped(core.terminate(1.0, "m"))[0].grace == 5.0
    assert core.listed()[0].route().replicas == []
    core.replica_gone(2.0, start.incarnation)
    assert core.listed() == []
    with pytest.raises(ModelNotFound, match="launched: none"):
        core.terminate(3.0, "m")


def test_deadline_fails_with_the_last_stage_and_stops_what_runs() -> None:
    core = cluster()
    (start,) = started(core.accept(0.0, wanted()))
    loading = record(start, wanted(), "LOADING")
    loading.status.stage = "reading shard 3"
    core.replica_updated(1.0, "w1", loading)
    assert core.next_wake() == TIMEOUT
    assert stopped(core.tick(TIMEOUT))[0].incarnation == start.incarnation
    assert state(core) == "FAILED"
    assert "reading shard 3" in (core.listed()[0].error or "")


def test_an_ended_launch_is_forgotten_in_time() -> None:
    core = cluster()
    (start,) = started(core.accept(0.0, wanted()))
    core.replica_gone(1.0, start.incarnation, "no", final=True)
    core.tick(KEPT)
    assert state(core) == "FAILED"
    core.tick(1.0 + KEPT)
    assert state(core) == "GONE"


def test_a_worker_that_returns_in_time_keeps_its_replicas() -> None:
    core = cluster()
    (start,) = ready(core, wanted())
    core.worker_left(1.0, "w1")
    assert core.tick(1.0 + LEASE) == []
    assert core.worker_joined(2.0, member(), [record(start, wanted())]) == []
    assert state(core) == "READY"
    assert core.tick(50.0) == []
    assert core.next_wake() is None


def test_a_worker_that_starts_anew_has_its_replicas_started_again_at_once() -> None:
    core = cluster()
    (start,) = ready(core, wanted())
    (again,) = started(core.worker_joined(1.0, member(), []))
    assert again.replica_id == start.replica_id
    assert again.incarnation != start.incarnation
    core.replica_updated(2.0, "w1", record(again, wanted()))
    found = core.listed()[0].status().replicas[0]
    assert (found.restarts, found.moves) == (0, 1), "it was no fault of its own"


def test_a_death_is_a_restart_and_no_move_and_both_are_remembered_by_the_worker() -> None:
    core = cluster()
    (start,) = ready(core, wanted())
    core.replica_gone(1.0, start.incarnation, "boom")
    (again,) = started(core.tick(1.0 + BACKOFF))
    assert (again.restarts, again.moves) == (1, 0)
    core.replica_updated(2.0, "w1", record(again, wanted()))
    told = record(again, wanted())
    told.status.restarts, told.status.moves = again.restarts, 3
    successor = cluster()
    successor.worker_joined(3.0, member(), [told])
    found = successor.listed()[0].status().replicas[0]
    assert (found.restarts, found.moves) == (1, 3)


def test_a_move_is_no_step_towards_a_crash_loop_nor_a_second_try() -> None:
    """A replica whose first life ended with its worker, and whose second says that it can't be loaded, has had its only try."""
    core = cluster()
    (start,) = started(core.accept(0.0, wanted()))
    (again,) = started(core.worker_joined(1.0, member(), []))
    assert again.incarnation != start.incarnation
    core.replica_gone(2.0, again.incarnation, "the weights are damaged", final=True, code="artifact_error")
    assert core.listed()[0].state == "FAILED"


def test_a_lost_replica_moves_after_two_leases_and_the_old_copy_is_killed() -> None:
    core = cluster()
    (old,) = ready(core, wanted())
    core.worker_joined(0.0, member("w2"), [])
    core.worker_left(1.0, "w1")
    assert core.tick(1.0 + LEASE) == []
    (new,) = started(core.tick(1.0 + 2 * LEASE))
    assert new.assignments[0].worker == "w2"
    (stop,) = stopped(core.worker_joined(9.0, member("w1"), [record(old, wanted())]))
    assert (stop.worker, stop.incarnation) == ("w1", old.incarnation)


def test_a_new_supervisor_adopts_what_workers_report_and_waits_before_it_places() -> None:
    core = Lifecycle(FirstFit(), "e2", launch_timeout=TIMEOUT, grace=5.0, settled_at=3.0)
    what = wanted(replicas=2)
    first = Start("m", "m-0", "e1-1", (Assignment("w1"),), 1.0)
    assert core.worker_joined(1.0, member(), [record(first, what)]) == []
    assert core.tick(2.9) == []
    assert core.next_wake() == 3.0
    (start,) = started(core.tick(3.0))
    assert (start.replica_id, start.incarnation) == ("m-1", "e2-1")
    core.replica_updated(4.0, "w1", record(start, what))
    assert state(core) == "READY"


def test_a_launch_that_was_ended_does_not_come_back_with_a_worker_that_was_cut_off() -> None:
    core = Lifecycle(FirstFit(), "e2", launch_timeout=TIMEOUT, grace=5.0, ended={("m", 1), ("n", 2)})
    lives = [record(Start(uid, f"{uid}-0", f"e1-{uid}", (Assignment("w1"),), 1.0), wanted(uid)) for uid in ("m", "n")]
    actions = core.worker_joined(1.0, member(), lives)
    assert [(stop.replica_id, stop.grace) for stop in stopped(actions)] == [("m-0", 5.0)]
    assert [launch.uid for launch in core.listed()] == ["n"], "which was launched anew, with the old name"


def test_a_replica_that_failed_while_no_supervisor_was_there_is_started_again() -> None:
    core = Lifecycle(FirstFit(), "e2", launch_timeout=TIMEOUT, grace=5.0, settled_at=3.0)
    dead = record(Start("m", "m-0", "e1-1", (Assignment("w1"),), 1.0), wanted(), "FAILED", "boom")
    assert core.worker_joined(1.0, member(), [dead]) == []
    assert core.listed()[0].replicas[0].error == "boom"
    assert started(core.tick(3.0))


def test_a_word_of_an_unknown_replica_gets_it_killed() -> None:
    core = cluster()
    stranger = record(Start("m", "m-0", "x-1", (Assignment("w1"),), 1.0), wanted())
    assert stopped(core.replica_updated(1.0, "w1", stranger))[0].incarnation == "x-1"
    assert core.replica_gone(2.0, "x-1") == []


def test_a_launch_that_was_ready_waits_for_its_worker() -> None:
    core = cluster()
    (start,) = ready(core, wanted())
    core.worker_left(1.0, "w1")
    now = 1.0
    while now < 5 * TIMEOUT:
        wake = core.next_wake()
        assert wake is not None
        assert wake > now
        now = wake
        assert core.tick(now) == []
        assert state(core) == ("READY" if now < 1.0 + 2 * LEASE else "PENDING")
    assert core.worker_joined(now, member(), [record(start, wanted())]) == []
    assert (state(core), core.next_wake()) == ("READY", None)


def test_what_a_cut_off_worker_ran_of_a_failed_launch_is_given_up() -> None:
    core = cluster()
    (start,) = started(core.accept(0.0, wanted()))
    core.replica_updated(0.5, "w1", record(start, wanted(), "LOADING"))
    core.worker_left(1.0, "w1")
    core.tick(1.0 + 2 * LEASE)
    core.tick(TIMEOUT)
    assert state(core) == "FAILED"
    core.tick(TIMEOUT + 3 * LEASE)
    assert not core.has_live("m")


def test_what_a_removed_worker_ran_is_placed_elsewhere_at_once_or_waits() -> None:
    core = cluster()
    (old,) = ready(core, wanted())
    core.worker_joined(0.0, member("w2"), [])
    (new,) = started(core.worker_removed(1.0, "w1"))
    assert ([a.worker for a in new.assignments], list(core.members)) == (["w2"], ["w2"])
    core.replica_updated(2.0, "w2", record(new, wanted()))
    assert started(core.worker_removed(3.0, "w2")) == []
    found = core.listed()[0].status().replicas[0]
    assert (found.state, found.moves, found.restarts) == ("PENDING", 2, 0)
    assert "no worker is connected" in found.stage
    assert core.listed()[0].route().replicas == []
    actions = core.worker_joined(4.0, member("w1"), [record(old, wanted())])
    assert [a for a in actions if isinstance(a, Stop)], "what it brings along has been given up"
    assert len(started(actions)) == 1


def test_a_worker_that_never_came_can_be_removed() -> None:
    assert cluster().worker_removed(0.0, "stranger") == []
