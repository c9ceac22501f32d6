"""Which launches have changed, for those who need not look at all of them: the routing table, the timer, and what waits for room."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from xi_core.cluster.launches import LaunchEntry

SLACK = 64
"""Times that are not due any more and may wait among the others."""


class Touched:
    """Launches that were touched since each of its three readers looked last. By uid: one that is gone is a change too."""

    def __init__(self) -> None:
        self._routes: dict[str, None] = {}
        self._clock: dict[str, None] = {}
        self._waiting: dict[str, None] = {}
        self._wakes: list[tuple[float, str]] = []
        self._wake_of: dict[str, float] = {}

    def touch(self, launch: LaunchEntry) -> None:
        """Something of it has changed."""
        uid = launch.uid
        self._routes[uid] = self._clock[uid] = self._waiting[uid] = None

    def routes(self) -> list[str]:
        """Those that changed since this was asked last."""
        found = list(self._routes)
        self._routes.clear()
        return found

    def waiting(self, launches: Mapping[str, LaunchEntry]) -> list[LaunchEntry]:
        """Those that may have replicas without a life, oldest first."""
        found = [launch for uid in self._waiting if (launch := launches.get(uid)) is not None and not launch.end]
        found = [launch for launch in found if any(not r.live and not r.leaving for r in launch.replicas)]
        found.sort(key=lambda launch: launch.number)
        self._waiting = {launch.uid: None for launch in found}
        return found

    def next_wake(self, wake_of: Callable[[str], float | None]) -> float | None:
        """The earliest time at which one of them has something to do; `wake_of` tells it of one that was touched."""
        for uid in self._clock:
            at = wake_of(uid)
            if at is None:
                self._wake_of.pop(uid, None)
            elif self._wake_of.get(uid) != at:
                self._wake_of[uid] = at
                heapq.heappush(self._wakes, (at, uid))
        self._clock.clear()
        if len(self._wakes) > 2 * len(self._wake_of) + SLACK:  # most are of launches that have ended long before their time
            self._wakes = [(at, uid) for uid, at in self._wake_of.items()]
            heapq.heapify(self._wakes)
        while self._wakes and self._wake_of.get(self._wakes[0][1]) != self._wakes[0][0]:
            heapq.heappop(self._wakes)
        return self._wakes[0][0] if self._wakes else None

    def due(self, now: float, wake_of: Callable[[str], float | None], launches: Mapping[str, LaunchEntry]) -> list[LaunchEntry]:
        """Those whose time has come, oldest first."""
        found = []
        while (at := self.next_wake(wake_of)) is not None and at <= now:
            uid = heapq.heappop(self._wakes)[1]
            del self._wake_of[uid]
            found.append(launches[uid])
        for launch in found:
            self.touch(launch)
        return sorted(found, key=lambda launch: launch.number)
