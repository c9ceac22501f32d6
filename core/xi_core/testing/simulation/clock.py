"""The virtual clock of a simulation: events in a heap, in the order of their times and then of their making."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Clock:
    """`now` is in seconds since the simulation began. Nothing waits for real time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def after(self, delay: float, do: Callable[..., None], *what: Any) -> None:
        """Call `do(*what)` in so many seconds."""
        heapq.heappush(self._events, (self.now + max(0.0, delay), next(self._numbers), do, what))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, do, what = heapq.heappop(self._events)
            do(*what)
        self.now = max(self.now, until)
