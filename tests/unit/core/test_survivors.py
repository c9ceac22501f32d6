"""The pure core where a part of a launch can't be had, also when the supervisor starts again, where loading dies slowly, and where a scheduler is of no use."""

from __future__ import annotations

import msgspec
import pytest

from xi_core.api.control import LaunchSpec, ReplicaStatus
from xi_core.cluster.launches import LaunchEntry, Wanted
from xi_core.cluster.lifecycle import LEASE, RESTARTS, WINDOW, Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.placement import Assignment, ClusterView, Placement, PlacementRequest, Rejection, Scheduler
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.errors import NoPlacement
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan

TIMEOUT = 100.0


class OnePerWorker(Scheduler):
    """The first worker without a replica. `broken` makes it raise, `silent` answer nothing."""

    broken = silent = False

    def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
        if self.broken:
            raise ZeroDivisionError("division by zero")
        if self.silent:
            return None  # type: ignore[return-value]
        free = next((worker.worker for worker in cluster.workers if not worker.replicas), None)
        return Rejection(reason="all are taken") if free is None else Placement(assignments=(Assignment(free),))


def wanted(replicas: int = 1, scheduler: str | None = None) -> Wanted:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    spec = LaunchSpec(model_name="toy", model_uid="m", replica=replicas, n_gpu=None, scheduler=scheduler)
    return Wanted(uid="m", spec=spec, model=model, engine="fake", n_gpu=0, created=1)


def record(start: Start, what: Wanted, state: str = "READY", progress: float | None = None) -> ReplicaRecord:
    plan = LaunchPlan(
        uid=start.uid,
        replica_id=start.replica_id,
        incarnation=start.incarnation,
        engine=EngineRef(name="fake", path="x:X"),
        artifact=Artifact(format="toy", path="/x"),
        endpoint="ipc:///x",
    )
    worker = start.assignments[0].worker
    status = ReplicaStatus(replica_id=start.replica_id, state=state, worker=worker, pid=7, progress=progress)  # type: ignore[arg-type]
    manifest = of_fields(chat={}) if state == "READY" else None
    return ReplicaRecord(plan=plan, spec=what.spec, status=status, created=1, model=what.model, endpoint="ipc:///x", manifest=manifest)


def cluster(*workers: str, scheduler: Scheduler | None = None) -> Lifecycle:
    core = Lifecycle(scheduler or OnePerWorker(), "e", launch_timeout=TIMEOUT, grace=5.0)
    for name in workers:
        core.worker_joined(0.0, Member(name, "i", [], ("fake",)), [])
    return core


def starts(actions: list[Action]) -> list[Start]:
    return [action for action in actions if isinstance(action, Start)]


def stops(actions: list[Action]) -> list[Stop]:
    return [action for action in actions if isinstance(action, Stop)]


def tell(core: Lifecycle, now: float, start: Start, state: str = "READY", progress: float | None = None) -> None:
    core.replica_updated(now, start.assignments[0].worker, record(start, wanted(3), state, progress))


def three_of_a_kind() -> tuple[Lifecycle, list[Start], LaunchEntry]:
    """A launch of three replicas that serve, each on a worker of its own."""
    core = cluster("w1", "w2", "w3")
    lives = starts(core.accept(0.0, wanted(3)))
    for life in lives:
        tell(core, 1.0, life)
    return core, lives, core.known("m")


def serving(launch: LaunchEntry) -> list[str]:
    return [replica.replica_id for replica in launch.route().replicas]


def counted(launch: LaunchEntry) -> tuple[str, int, list[str]]:
    """What users are told."""
    status = launch.status()
    return status.state, status.ready_replicas, [replica.state for replica in status.replicas]


def adopt(core: Lifecycle, now: float, lives: list[Start]) -> None:
    """Their workers tell a new supervisor of them."""
    for life in lives:
        worker = life.assignments[0].worker
        core.worker_joined(now, Member(worker, "i", [], ("fake",)), [record(life, wanted(3))])


def pass_time(core: Lifecycle, now: float, until: float) -> list[Action]:
    """All that the clock brings about."""
    actions: list[Action] = []
    while (wake := core.next_wake()) is not None and wake <= until:
        now = max(now + 0.01, wake)
        actions += core.tick(now)
    return actions


def test_a_worker_that_stays_away_does_not_take_the_other_replicas_along() -> None:
    core, lives, launch = three_of_a_kind()
    core.worker_left(2.0, "w3")
    assert stops(pass_time(core, 2.0, 5 * TIMEOUT)) == [], "there is no place for the third, and two serve"
    assert (launch.end, serving(launch)) == ("", ["m-0", "m-1", "m-2"]), "it may well serve on beyond the lost link"
    core.worker_joined(5 * TIMEOUT + 1, Member("w3", "i2", [], ("fake",)), [])
    (again,) = [replica for replica in launch.replicas if replica.replica_id == lives[2].replica_id]
    assert again.incarnation != lives[2].incarnation


def test_what_a_worker_ran_that_stays_away_is_not_counted() -> None:
    core, lives, launch = three_of_a_kind()
    core.worker_left(2.0, "w3")
    pass_time(core, 2.0, 2.0 + LEASE)
    assert counted(launch) == ("READY", 3, ["READY"] * 3), "the link may have been down for a moment only"
    tell(core, 3.5, lives[0])
    pass_time(core, 3.5, 2.1 + 2 * LEASE)
    assert counted(launch) == ("PENDING", 2, ["READY", "READY", "PENDING"])
    assert launch.status().replicas[2].stage == "worker w3 is away"
    assert launch.deadline is not None
    core.worker_joined(6.0, Member("w3", "i", [], ("fake",)), [record(lives[2], wanted(3))])
    assert (counted(launch), launch.deadline) == (("READY", 3, ["READY"] * 3), None)


def test_it_is_stuck_where_all_that_is_missing_waits_for_a_worker_or_for_room() -> None:
    core, _, launch = three_of_a_kind()
    core.worker_left(2.0, "w3")
    assert not launch.status().stuck
    pass_time(core, 2.0, 2.1 + 2 * LEASE)
    assert launch.status().stuck, "its worker is away"
    (moved,) = starts(core.worker_joined(6.0, Member("w4", "i", [], ("fake",)), []) + core.tick(10.0))
    assert not launch.status().stuck, "another loads elsewhere"
    tell(core, 11.0, moved)
    assert (launch.state, launch.status().stuck) == ("READY", False)
    core.worker_removed(12.0, "w4")
    assert launch.status().stuck, "there is no room"
    core.terminate(13.0, "m")
    assert not launch.status().stuck


def test_what_dies_what_is_new_and_what_takes_a_place_is_on_its_way() -> None:
    core, lives, launch = three_of_a_kind()
    core.replica_gone(2.0, lives[2].incarnation, "boom")
    assert not launch.status().stuck, "it is started again in a moment"
    (again,) = starts(core.tick(3.0))
    tell(core, 4.0, again)
    core.worker_left(5.0, "w3")
    pass_time(core, 5.0, 5.1 + 2 * LEASE)
    core.worker_joined(8.0, Member("w4", "i", [], ("fake",)), [])
    core.worker_joined(8.0, Member("w5", "i", [], ("fake",)), [])
    assert len(starts(core.scale(8.0, "m", 4))) == 1
    assert not launch.status().stuck, "one more loads"
    core, lives, launch = three_of_a_kind()
    core.worker_joined(2.0, Member("w4", "i", [], ("fake",)), [])
    assert starts(core.drain(3.0, "w1", 60.0))
    core.worker_left(4.0, "w1")
    pass_time(core, 4.0, 4.1 + 2 * LEASE)
    assert counted(launch)[:2] == ("PENDING", 2)
    assert not launch.status().stuck, "what is to take its place loads"


def test_a_first_launch_is_never_stuck_for_it_has_a_deadline() -> None:
    core = cluster("w1", "w2", "w3")
    first, *_ = starts(core.accept(0.0, wanted(3)))
    tell(core, 1.0, first)
    for worker in ("w2", "w3"):
        core.worker_left(2.0, worker)
    pass_time(core, 2.0, 2.1 + 2 * LEASE)
    assert not core.known("m").status().stuck


def test_what_is_away_goes_first_when_fewer_are_wanted() -> None:
    core, _, launch = three_of_a_kind()
    core.worker_left(2.0, "w1")
    pass_time(core, 2.0, 2.1 + 2 * LEASE)
    assert [stop.replica_id for stop in stops(core.scale(6.0, "m", 2))] == ["m-0"]
    assert (counted(launch)[:2], launch.deadline) == (("READY", 2), None)


def test_where_all_are_away_the_gateways_are_told_why() -> None:
    core, _, launch = three_of_a_kind()
    for worker in ("w1", "w2", "w3"):
        core.worker_left(2.0, worker)
    pass_time(core, 2.0, 5 * TIMEOUT)
    assert (launch.end, counted(launch)) == ("", ("PENDING", 0, ["PENDING"] * 3))
    route = launch.route()
    assert (route.state, route.detail, len(route.replicas)) == ("PENDING", "worker w1 is away", 3)


def test_a_blip_of_all_links_at_the_deadline_of_a_missing_replica_ends_nothing() -> None:
    core, lives, launch = three_of_a_kind()
    core.replica_gone(2.0, lives[2].incarnation, "the device is broken")
    assert launch.deadline == 2.0 + TIMEOUT
    core.worker_left(1.0 + TIMEOUT, "w1")
    core.worker_left(1.0 + TIMEOUT, "w2")
    late = pass_time(core, 2.0, 2.1 + TIMEOUT)
    assert {stop.replica_id for stop in stops(late)} == {"m-2"}
    assert (launch.end, serving(launch)) == ("", ["m-0", "m-1"])


@pytest.mark.parametrize("memory", ["kept", "of an older xi", "none"])
def test_a_supervisor_that_starts_again_while_a_worker_is_away_ends_nothing(memory: str) -> None:
    _, lives, before = three_of_a_kind()
    again = cluster()
    if memory != "none":
        again.restore(5.0, before.wanted if memory == "kept" else msgspec.structs.replace(before.wanted, was_ready=None))
    adopt(again, 6.0, lives[:2])
    launch = again.known("m")
    assert stops(pass_time(again, 6.0, 5 * TIMEOUT)) == []
    assert (counted(launch), serving(launch)) == (("PENDING", 2, ["READY", "READY", "PENDING"]), ["m-0", "m-1"])
    (third,) = starts(again.worker_joined(600.0, Member("w4", "i", [], ("fake",)), []))
    assert stops(again.replica_gone(601.0, third.incarnation, "the weights are damaged", final=True)) == []
    assert (launch.end, serving(launch)) == ("", ["m-0", "m-1"])
    assert {stop.grace for stop in stops(again.terminate(602.0, "m"))} == {5.0}


def test_a_launch_that_was_ready_waits_for_its_workers_beyond_a_restart_of_the_supervisor() -> None:
    _, lives, before = three_of_a_kind()
    again = cluster()
    again.restore(5.0, before.wanted)
    assert pass_time(again, 5.0, 5 * TIMEOUT) == []
    launch, now = again.known("m"), (again.next_wake() or 0.0) - 1.0
    (first,) = starts(again.worker_joined(now, Member("w3", "i2", [], ("fake",)), []))
    assert (first.deadline, launch.deadline) == (TIMEOUT, now + TIMEOUT), "however long was waited"
    adopt(again, now, lives[1:2])
    tell(again, now, first)
    assert (launch.end, counted(launch)) == ("", ("PENDING", 2, ["READY", "READY", "PENDING"]))


def test_what_is_tried_after_a_restart_ends_by_its_deadline() -> None:
    _, _, before = three_of_a_kind()
    again = cluster()
    again.restore(5.0, before.wanted)
    pass_time(again, 5.0, 5 * TIMEOUT)
    again.worker_joined(600.0, Member("w4", "i", [], ("fake",)), [])
    assert len(stops(pass_time(again, 600.0, 600.0 + TIMEOUT))) == 1, "it hangs"
    assert again.known("m").end == "FAILED"


def test_a_first_launch_of_which_a_part_can_be_had_fails_by_its_deadline_beyond_a_restart_too() -> None:
    core = cluster("w1", "w2", "w3")
    first, *_ = starts(core.accept(0.0, wanted(3)))
    tell(core, 1.0, first)
    again = cluster()
    again.restore(5.0, core.known("m").wanted)
    adopt(again, 6.0, [first])
    assert len(stops(pass_time(again, 6.0, 5.0 + TIMEOUT))) == 1
    assert again.known("m").end == "FAILED"


def test_a_launch_anew_has_not_been_ready() -> None:
    core, _, launch = three_of_a_kind()
    assert [one.was_ready for one in core.wanted()] == [True]
    core.terminate(2.0, "m")
    for worker in ("w1", "w2", "w3"):
        core.worker_removed(3.0, worker)
        core.worker_joined(4.0, Member(worker, "i2", [], ("fake",)), [])
    core.accept(5.0, launch.wanted)
    assert [one.was_ready for one in core.wanted()] == [False]


@pytest.mark.parametrize("again", [False, True])
def test_what_died_once_before_its_worker_went_away_waits_for_it_too(again: bool) -> None:
    """`again`: its next life had begun there."""
    core = cluster("w1")
    (life,) = starts(core.accept(0.0, wanted(1)))
    core.replica_updated(1.0, "w1", record(life, wanted(1)))
    launch = core.known("m")
    core.replica_gone(2.0, life.incarnation, "boom")
    if again:
        assert starts(core.tick(core.next_wake() or 0.0))
    core.worker_left(5.0, "w1")
    pass_time(core, 5.0, 5 * TIMEOUT)
    assert launch.end == ""
    now = 5 * TIMEOUT + launch.replicas[0].starts
    (next_life,) = starts(core.worker_joined(now, Member("w1", "another", [], ("fake",)), []))
    assert launch.deadline == now + TIMEOUT, "what is tried then has the whole time"
    core.replica_updated(now + 1, "w1", record(next_life, wanted(1)))
    assert launch.state == "READY"


def test_a_removed_worker_does_not_take_the_other_replicas_along() -> None:
    core, _, launch = three_of_a_kind()
    core.worker_removed(2.0, "w3")
    assert stops(pass_time(core, 2.0, 5 * TIMEOUT)) == []
    assert (launch.end, launch.state, serving(launch)) == ("", "PENDING", ["m-0", "m-1"])
    (third,) = starts(core.worker_joined(600.0, Member("w4", "i", [], ("fake",)), []))
    tell(core, 601.0, third)
    assert (launch.state, launch.deadline) == ("READY", None)


def test_a_replica_in_a_crash_loop_is_tried_again_and_again_while_others_serve() -> None:
    core, lives, launch = three_of_a_kind()
    life, now = lives[2], 2.0
    began: list[float] = []
    for _ in range(3 * RESTARTS):
        assert stops(core.replica_gone(now, life.incarnation, "the device is broken")) == []
        again: list[Start] = []
        while not again:  # the launch's deadline may come first
            now = core.next_wake() or now
            again = starts(core.tick(now))
        life, began = again[0], [*began, now]
        assert serving(launch) == ["m-0", "m-1"]
    assert all(later - earlier >= WINDOW for earlier, later in zip(began, began[RESTARTS:], strict=False)), "no more than before"
    assert launch.hindrance() == "m-2: the device is broken"
    tell(core, now + 1, life)
    assert (launch.state, serving(launch)) == ("READY", ["m-0", "m-1", "m-2"])


def test_a_crash_loop_of_all_replicas_fails() -> None:
    core, lives, launch = three_of_a_kind()
    now = 2.0
    for _ in range(RESTARTS + 1):
        for life in lives:
            core.replica_gone(now, life.incarnation, "boom")
        lives = []
        while len(lives) < 3 and not launch.end:
            now = core.next_wake() or now
            lives += starts(core.tick(now))
    assert launch.end == "FAILED"
    assert launch.error == "replica m-0 ended 4 times within 60 s; the last time: boom"


def test_a_replica_that_is_late_is_begun_anew_while_others_serve() -> None:
    """A rank of several that hangs in its download is ended by nobody else."""
    core, lives, launch = three_of_a_kind()
    core.replica_gone(2.0, lives[2].incarnation, "boom")
    (late,) = starts(core.tick(3.0))
    tell(core, 4.0, late, "PREPARING")
    (stop,) = stops(pass_time(core, 4.0, 2.0 + TIMEOUT))
    assert stop.incarnation == late.incarnation
    core.replica_gone(103.0, late.incarnation)
    assert launch.hindrance() == "m-2: it was not ready within its time"
    assert starts(pass_time(core, 103.0, 110.0))
    assert serving(launch) == ["m-0", "m-1"]


def test_a_first_launch_of_which_only_a_part_can_be_had_fails_by_its_deadline() -> None:
    core = cluster("w1", "w2", "w3")
    first, *_ = starts(core.accept(0.0, wanted(3)))
    tell(core, 1.0, first)
    assert len(stops(core.tick(TIMEOUT))) == 3
    assert core.known("m").end == "FAILED"


def test_loading_that_dies_slowly_is_a_crash_loop_too() -> None:
    """As where the system kills an engine that has loaded for half a minute; each life verifies the files anew, which is progress."""
    core, now, lives = cluster("w1"), 0.0, 0
    (life,) = starts(core.accept(now, wanted()))
    launch = core.known("m")
    while not launch.end and lives < 50:
        tell(core, now, life, "PREPARING", 0.5)
        now, lives = now + 30.0, lives + 1
        core.replica_gone(now, life.incarnation, "it was killed")
        for start in starts(pass_time(core, now, now + 5.0)):
            life = start
    assert lives == RESTARTS + 1
    assert launch.error == "replica m-0 ended 4 times without being READY between; the last time: it was killed"


@pytest.mark.parametrize("how", ["broken", "silent"])
def test_a_scheduler_that_fails_stops_nothing_else(how: str) -> None:
    scheduler = OnePerWorker()
    core = cluster("w1", scheduler=scheduler)
    (life,) = starts(core.accept(0.0, wanted()))
    core.replica_gone(1.0, life.incarnation, "boom")
    setattr(scheduler, how, True)
    assert pass_time(core, 1.0, 10.0) == []
    assert "the scheduler failed: " in core.known("m").replicas[0].stage
    assert core.next_wake() is not None
    with pytest.raises(NoPlacement, match=r"the scheduler failed: \w+Error: "):
        core.accept(2.0, msgspec.structs.replace(wanted(), uid="other"))


def test_a_scheduler_that_is_no_longer_installed_stops_nothing_else() -> None:
    """A worker still runs a launch that names it, and a part of that launch has no life."""
    core = cluster()
    life = Start("m", "m-0", "e0-1", (Assignment("w1"),), 1.0)
    core.worker_joined(0.0, Member("w1", "i", [], ("fake",)), [record(life, wanted(2, scheduler="of-a-plugin"))])
    assert serving(core.known("m")) == ["m-0"]
    assert core.known("m").replicas[1].stage == "waiting: the scheduler 'of-a-plugin' is not installed with the supervisor"
    core.worker_joined(0.0, Member("w2", "i", [], ("fake",)), [])
    assert starts(core.accept(1.0, msgspec.structs.replace(wanted(), uid="other")))
