"""When a worker calls a replica's process dead, hung or late, on a clock of the test's own."""

from __future__ import annotations

from msgspec.structs import replace

from xi_core.cluster.vitals import STOOD_STILL, UNHEALTHY, Vitals
from xi_core.testing.harness import plan_for
from xi_core.wire.plan import ServingLimits

STEP = STOOD_STILL / 2
"""Seconds between two looks of a worker that isn't suspended."""


class Watched:
    """A process's vitals, and time that passes as the test says."""

    def __init__(self, *, deadline: float = 10.0, hang_timeout: float = 3.0) -> None:
        self.now = 100.0
        plan = replace(plan_for("x:X", "", "fake"), replica_id="m-0", limits=ServingLimits(hang_timeout=hang_timeout))
        self.vitals = Vitals(plan, deadline, clock=lambda: self.now)

    def after(self, seconds: float, *, ready: bool = True, reports: bool = False) -> str:
        """What is said of it after so long, in which the worker looks on and on, and it reports or doesn't."""
        end = self.now + seconds
        while True:
            if reports:
                self.vitals.heard()
            said = self.vitals.overdue(ready=ready)
            if said or self.now >= end:
                return said
            self.now += STEP


def test_one_that_loads_has_until_its_deadline_and_may_be_silent() -> None:
    watched = Watched(deadline=10.0, hang_timeout=3.0)
    assert watched.after(10.0, ready=False) == ""
    assert watched.after(STEP, ready=False) == "m-0 was not ready within its time"


def test_a_ready_one_that_is_silent_is_overdue_after_its_hang_timeout() -> None:
    watched = Watched(hang_timeout=3.0)
    assert watched.after(3.0) == ""
    assert watched.after(STEP) == "m-0 was silent for 3 s and was killed"


def test_one_that_reports_and_makes_progress_never_is() -> None:
    watched = Watched(hang_timeout=3.0)
    for _ in range(20):
        watched.vitals.well()
        assert watched.after(UNHEALTHY, reports=True) == ""


def test_one_that_reports_no_progress_is_overdue_with_its_reason() -> None:
    watched = Watched()
    watched.vitals.unwell("no step for 5 s")
    assert watched.after(UNHEALTHY, reports=True) == ""
    assert watched.after(STEP, reports=True) == "m-0 made no progress and was killed: no step for 5 s"


def test_one_that_gives_no_reason_is_overdue_all_the_same() -> None:
    assert Watched().after(UNHEALTHY + STEP, reports=True) == "m-0 made no progress and was killed: it gave no reason"


def test_time_in_which_the_worker_was_suspended_is_not_the_replica_s() -> None:
    """Its reports lie unread in the pipe."""
    watched = Watched(hang_timeout=3.0)
    watched.now += 60.0
    assert watched.after(3.0) == ""
    assert watched.after(STEP) == "m-0 was silent for 3 s and was killed"


def test_but_it_does_count_towards_the_deadline() -> None:
    watched = Watched(deadline=10.0)
    watched.now += 60.0
    assert watched.after(STEP, ready=False) == "m-0 was not ready within its time"
