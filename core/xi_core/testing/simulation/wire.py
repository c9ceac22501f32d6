"""Simulated links between workers and supervisors. As `xi_core.transport.rpc`: in order, or broken; what was under way is lost then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from xi_core.testing.simulation.clock import Clock
from xi_core.transport.rpc import BEAT, MISSED

SILENCE = BEAT * MISSED
"""Seconds without a sign of life after which one side gives a link up."""


class Asked:
    """A command, and where its answer goes."""

    def __init__(self, number: int, command: Any) -> None:
        self.number, self.command = number, command


class Answer:
    """The answer to a command of that number."""

    def __init__(self, number: int, body: Any) -> None:
        self.number, self.body = number, body


class Side(Protocol):
    """One who holds an end of a link."""

    @property
    def stands_still(self) -> bool:
        """It is suspended: what comes lies unread, and its clocks aren't looked at."""

    def receive(self, link: Link, message: Any) -> None:
        """A message has come."""

    def lost(self, link: Link) -> None:
        """The other side is gone, or silent for too long."""


class Path:
    """The network between one worker's machine and the supervisor's. `cut[n]`: what side n sends doesn't arrive."""

    def __init__(self) -> None:
        self.cut = [False, False]
        self.slowness = 1.0


class Link:
    """One conversation. Side 0 is the worker, which dialled; side 1 the supervisor."""

    def __init__(self, clock: Clock, random: Random, path: Path, worker: Side, supervisor: Side) -> None:
        self.sides = (worker, supervisor)
        self.open = [True, True]
        self._clock, self._random, self._path = clock, random, path
        self._sent: list[deque[Any]] = [deque(), deque()]
        self._held = [0, 0]
        self._last = [0.0, 0.0]
        self._mute_since: list[float | None] = [None, None]
        for side in (0, 1):
            self.listen(side)

    def send(self, side: int, message: Any) -> bool:
        """Say something from this side. False where its end is closed."""
        if not self.open[side]:
            return False
        at = max(self._last[side], self._clock.now + self._latency())
        self._last[side] = at
        self._sent[side].append(message)
        self._clock.after(at - self._clock.now, self._arrive, side)
        return True

    def close(self, side: int) -> None:
        """End it on this side. The other one is told, where word reaches it, and falls back on the silence else."""
        if not self.open[side]:
            return
        self.open[side] = False
        other = 1 - side
        if not self._path.cut[side] and self._random.random() < 0.7:
            self._clock.after(max(self._last[side] - self._clock.now, 0.0) + self._latency(), self._told_bye, other)
        self.listen(other)

    def listen(self, side: int) -> None:
        """Look again at what this side hears: to be called when the other one falls mute, or may speak again."""
        other = 1 - side
        mute = self._path.cut[other] or not self.open[other] or self.sides[other].stands_still
        if not mute:
            self._mute_since[other] = None
        elif self._mute_since[other] is None:
            since = self._mute_since[other] = self._clock.now
            self._clock.after(SILENCE + self._random.uniform(0, BEAT), self._silent, side, since)

    def changed(self) -> None:
        """The path is cut or heals, or a side stands still or goes on: what was held arrives now, if it can."""
        for side in (0, 1):
            self.listen(side)
            held, self._held[side] = self._held[side], 0
            for _ in range(held):
                self._clock.after(self._latency(), self._arrive, side)

    def _latency(self) -> float:
        return self._random.uniform(0.0005, 0.02) * self._path.slowness

    def _arrive(self, side: int) -> None:
        other = 1 - side
        if not self.open[other]:
            return
        if self._path.cut[side] or self.sides[other].stands_still:
            self._held[side] += 1
            return
        self.sides[other].receive(self, self._sent[side].popleft())

    def _told_bye(self, side: int) -> None:
        if not self._path.cut[1 - side] and not self.sides[side].stands_still and not self._held[1 - side]:
            self._lose(side)

    def _silent(self, side: int, since: float) -> None:
        if self._mute_since[1 - side] != since:
            return
        if self.sides[side].stands_still:  # its clock is looked at when it goes on, and it reads what lies there before
            self._clock.after(SILENCE, self._silent, side, since)
        else:
            self._lose(side)

    def _lose(self, side: int) -> None:
        if self.open[side]:
            self.open[side] = False
            self.listen(1 - side)
            self.sides[side].lost(self)


Trace = Callable[[str], None]
"""Takes one line of what happens."""
