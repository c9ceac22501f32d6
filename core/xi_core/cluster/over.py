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
        self._at: dict[Name, float] = {}
        """When each was over, the oldest first."""

    def __contains__(self, name: Name) -> bool:
        return name in self._at or name in self._former

    def add(self, now: float, launch: LaunchEntry, since: float) -> None:
        """Nothing is left of this one. Those that were over before `since` are forgotten."""
        self._at[_name(launch)] = now
        while (oldest := next(iter(self._at))) and self._at[oldest] < since:
            del self._at[oldest]

    def discard(self, launch: LaunchEntry) -> None:
        """This one begins."""
        self._at.pop(_name(launch), None)


def _name(launch: LaunchEntry) -> Name:
    return launch.uid, launch.wanted.created
