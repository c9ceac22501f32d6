"""Launches that are over, as a supervisor remembers them: by name only, for they come and go without end. Part of the pure core."""

from __future__ import annotations

from collections.abc import Set

from xi_core.cluster.launches import LaunchEntry

Name = tuple[str, int]
"""A launch's uid and when it was created: another of this uid may follow."""


class OverLaunches:
    """Launches that users can't see and that aren't taken over from workers: one that was away may still run them."""

    def __init__(self, former: Set[Name]) -> None:
        """`former`: those of the supervisor's former lives."""
        self._former = former
        self._newest: dict[str, tuple[int, float]] = {}
        """By uid: when the newest that is over was created, which those before it are as well, and when it was over. The oldest first."""

    def __contains__(self, name: Name) -> bool:
        uid, created = name
        newest = self._newest.get(uid)
        return name in self._former or (newest is not None and created <= newest[0])

    def add(self, now: float, launch: LaunchEntry, since: float) -> None:
        """Nothing is left of this one. Those that were over before `since` are forgotten."""
        before, _ = self._newest.pop(launch.uid, (0, now))
        self._newest[launch.uid] = max(before, launch.wanted.created), now
        while self._newest[oldest := next(iter(self._newest))][1] < since:
            del self._newest[oldest]
