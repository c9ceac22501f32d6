"""What a supervisor keeps of launches that are over: a name for a while, and no time at which to look again."""

from __future__ import annotations

from device_clusters import cluster, member, ready, record, starts, stops, wanted
from msgspec.structs import replace

from xi_core.cluster.lifecycle import KEPT, Lifecycle
from xi_core.cluster.placement import Assignment
from xi_core.cluster.replicas import Start
from xi_core.cluster.touched import SLACK


def brief(core: Lifecycle, now: float, uid: str, created: int = 1) -> None:
    """A launch that serves, and is stopped."""
    what = replace(wanted(uid=uid), created=created)
    (start,) = starts(core.accept(now, what))
    ready(core, start, now=now)
    core.next_wake()
    core.terminate(now, uid)
    core.replica_gone(now, start.incarnation)
    core.tick(now)


def left_over(core: Lifecycle, now: float, uid: str) -> list[str]:
    """What happens to a replica of a former supervisor's that a worker tells of which was away."""
    old = Start(uid, f"{uid}-0", f"e0-{uid}", (Assignment("w2"),), 1.0)
    return stops(core.worker_joined(now, member("w2"), [record(old, wanted(uid=uid))]))


def test_of_a_launch_that_was_stopped_only_the_name_is_kept_and_only_for_a_while() -> None:
    core = cluster(member("w1"))
    brief(core, 1.0, "m")
    assert not core._state.launches
    assert core.next_wake() is None
    assert left_over(core, 2.0, "m"), "it was on a worker that was cut off, and isn't wanted any more"
    brief(core, 2.0 + KEPT, "other")
    assert ("m", 1) not in core._state.over
    assert ("other", 1) in core._state.over


def test_with_a_launch_those_before_it_of_its_name_are_over() -> None:
    """One that failed is followed by another: only that one's end is heard of, and what a worker runs of the first isn't wanted either."""
    core = cluster(member("w1"))
    brief(core, 1.0, "m", created=2)
    assert left_over(core, 2.0, "m"), "which was created at 1"
    assert ("m", 3) not in core._state.over


def test_a_clock_that_was_set_back_brings_nothing_to_life() -> None:
    core = cluster(member("w1"))
    brief(core, 1.0, "m", created=5)
    brief(core, 2.0, "m", created=3)
    assert ("m", 4) in core._state.over


def test_another_launch_of_that_name_is_another() -> None:
    core = cluster(member("w1"))
    brief(core, 1.0, "m", created=1)
    brief(core, 1.0, "m", created=1)
    (start,) = starts(core.accept(1.0, wanted(uid="m")))
    assert ready(core, start, now=2.0) == []
    assert core.worker_joined(3.0, member("w1"), [record(start, wanted(uid="m"))]) == [], (
        "it is wanted, created in the same second as it is"
    )
    assert [(launch.uid, launch.state) for launch in core.listed()] == [("m", "READY")]


def test_launches_that_come_and_go_leave_no_times_behind() -> None:
    core = cluster(member("w1"))
    for n in range(4 * SLACK):
        brief(core, 1.0 + n / 1000, f"m-{n}")
    assert len(core._state.touched._wakes) <= SLACK + 1
    assert core.next_wake() is None


def test_a_stopped_launch_is_looked_at_when_its_last_process_is_gone() -> None:
    core = cluster(member("w1"))
    (start,) = starts(core.accept(1.0, wanted()))
    ready(core, start)
    core.terminate(2.0, "m")
    assert core.next_wake() is None, "the worker tells when it is gone, however long that takes"
    core.replica_gone(3 * KEPT, start.incarnation)
    assert core.next_wake() == 2.0
    core.tick(3 * KEPT)
    assert not core._state.launches
