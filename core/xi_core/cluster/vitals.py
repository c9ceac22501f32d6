"""Whether a replica's process is alive and well, judged by what it reports. Each `RunningReplica` keeps one `Vitals` for its process."""

from __future__ import annotations

import time
from collections.abc import Callable

from xi_core.wire.plan import LaunchPlan

STOOD_STILL = 1.0
"""A longer gap between two looks, in seconds, means that this worker was suspended: what its replicas said meanwhile lies unread."""
UNHEALTHY = 1.0
"""Seconds of unhealthy reports after which a replica is killed; it has waited for its own `hang_timeout` before the first."""


class Vitals:
    """When a process was last heard of, when it was last well, and by when it must be ready. From its start on."""

    def __init__(self, plan: LaunchPlan, deadline: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`deadline`: seconds within which it must be ready. `clock` counts seconds, from any beginning."""
        self._plan, self._clock = plan, clock
        now = clock()
        self._deadline = now + deadline
        self._heard_at = self._well_at = self._looked_at = now
        self._complaint = ""

    def heard(self) -> None:
        """It has reported something."""
        self._heard_at = self._clock()

    def well(self) -> None:
        """It has just become ready, or says that it makes progress."""
        self._well_at = self._clock()

    def unwell(self, reason: str) -> None:
        """It says that it makes no progress."""
        self._complaint = reason

    def overdue(self, *, ready: bool) -> str:
        """Why the replica must be killed; empty while all is well. To be asked often: time in which this worker itself stood still
        doesn't count."""
        now, name = self._clock(), self._plan.replica_id
        gap, self._looked_at = now - self._looked_at, now
        if gap > STOOD_STILL:
            self._heard_at += gap
            self._well_at += gap
        if not ready:
            return f"{name} was not ready within its time" if now > self._deadline else ""
        hang_timeout = self._plan.limits.hang_timeout
        if now - self._heard_at > hang_timeout:
            return f"{name} was silent for {hang_timeout:g} s and was killed"
        if self._heard_at - self._well_at > UNHEALTHY:
            return f"{name} made no progress and was killed: {self._complaint or 'it gave no reason'}"
        return ""
