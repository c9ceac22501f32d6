"""A circuit breaker: a replica that answers pings but fails requests gets none for a while, then one to try. One per replica link.

closed → (`FAILURES` in a row) → open → (a pause) → half-open, which lets one request through → closed, or open for twice as long.
"""

from __future__ import annotations

FAILURES = 5
PAUSE_FIRST = 1.0
PAUSE_MOST = 30.0
"""Seconds."""
STATES = ("closed", "half_open", "open")


class Breaker:
    """Counts failures; keeps no clock of its own. All times are in loop time."""

    __slots__ = ("_failures", "_open_until", "_pause", "_trying", "state")

    def __init__(self) -> None:
        self.state = "closed"
        self._failures = 0
        self._pause = PAUSE_FIRST
        self._open_until = 0.0
        self._trying = False

    @property
    def allows(self) -> bool:
        """Whether a request may go through."""
        return self.state == "closed" or (self.state == "half_open" and not self._trying)

    def sent(self) -> None:
        """A request was sent through."""
        self._trying = self.state == "half_open"

    def succeeded(self) -> None:
        """A request was answered, if only with a refusal."""
        self.state = "closed"
        self._failures = 0
        self._pause = PAUSE_FIRST
        self._trying = False

    def failed(self, now: float) -> None:
        """A request failed before its first byte, or the connection did."""
        self._failures += 1
        if self.state == "half_open":
            self._pause = min(2 * self._pause, PAUSE_MOST)
        if self.state == "half_open" or (self.state == "closed" and self._failures >= FAILURES):
            self.state = "open"
            self._open_until = now + self._pause
        self._trying = False

    def given_up(self) -> None:
        """The request that was to try it out ended without a verdict: its client left."""
        self._trying = False

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.state == "open" and now >= self._open_until:
            self.state = "half_open"
