"""Bounds that keep one client from harming the others: waiting requests per model, bytes that wait for slow clients."""

from __future__ import annotations

from collections.abc import Callable

from xi_core.errors import Overloaded

MIB = 1024 * 1024


def check_queue(uid: str, open_requests: int, slots: int, queue_size: int) -> None:
    """Raises `Overloaded` when `queue_size` requests of this model wait already: those open beyond its replicas' slots."""
    if open_requests >= slots + queue_size:
        raise Overloaded(
            f"model '{uid}' has {max(open_requests - slots, 0)} requests waiting, which is its limit (XI_QUEUE_SIZE={queue_size}); "
            f"try again later or launch more replicas",
            param="model",
            retry_after=1.0,
        )


class Backlog:
    """Bytes that wait in this gateway because clients read too slowly, over all streams.

    Only a stream whose client is not reading right now adds to it, so the usual path costs nothing.
    """

    def __init__(self, per_stream: int = MIB, total: int = 256 * MIB, stall: float = 30.0) -> None:
        self.per_stream = per_stream
        self.total = total
        self.stall = stall
        """Seconds in which a client that doesn't read must take at least one piece."""
        self.held = 0


class SlowClient:
    """One stream's share of the backlog. `drop` is called once, with the reason, when the stream is over a bound."""

    __slots__ = ("_backlog", "_drop", "blocked_since", "bytes")

    def __init__(self, backlog: Backlog, drop: Callable[[str], None]) -> None:
        self._backlog = backlog
        self._drop = drop
        self.bytes = 0
        self.blocked_since = 0.0
        """Loop time at which the send that is still in progress began; 0 when none is."""

    def add(self, size: int) -> None:
        """`size` more bytes came while a send is in progress."""
        backlog = self._backlog
        self.bytes += size
        backlog.held += size
        if self.bytes > backlog.per_stream:
            self._drop(f"more than {backlog.per_stream} bytes wait for it")
        elif backlog.held > backlog.total:
            self._drop(f"more than {backlog.total} bytes wait for all slow clients of this gateway")

    def taken(self) -> None:
        """The client reads again, or the stream is over: nothing of it waits."""
        self._backlog.held -= self.bytes
        self.bytes = 0
        self.blocked_since = 0.0

    def check(self, now: float) -> None:
        """Drop the stream if its send has been in progress for too long."""
        if self.blocked_since and now - self.blocked_since > self._backlog.stall:
            self._drop(f"it has read nothing for {self._backlog.stall:g} s")
