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

    def __init__(self, per_stream: int = MIB, total: int = 256 * MIB, whole: int = 1024 * MIB, stall: float = 30.0) -> None:
        self.per_stream = per_stream
        self.total = total
        self.whole = whole
        """Bytes of all answers that are whole and on their way to clients. They are no load on a replica, so no queue bounds them."""
        self.stall = stall
        """Seconds in which a client that doesn't read must take at least one piece."""
        self.held = 0
        self.taking: dict[SlowClient, int] = {}
        """Who is taking a whole answer, and its size: who has been at it longest first."""

    def check(self) -> None:
        """Drop those that have been taking their whole answers longest, where all hold too much between them."""
        held = sum(self.taking.values())
        for slow, size in list(self.taking.items()):
            if held <= self.whole:
                break
            held -= size
            slow.drop(f"more than {self.whole} bytes of whole answers wait for the clients of this gateway")


class SlowClient:
    """One request's share of the backlog. `drop` is called with the reason when it is over a bound."""

    __slots__ = ("_backlog", "_looks", "_seen", "blocked_since", "bytes", "drop")

    def __init__(self, backlog: Backlog, drop: Callable[[str], None]) -> None:
        self._backlog = backlog
        self.drop = drop
        self._seen = 0.0
        self._looks = 0
        self.bytes = 0
        self.blocked_since = 0.0
        """Loop time at which the send that is still in progress began; 0 when none is."""

    def add(self, size: int) -> None:
        """`size` more bytes came while a send is in progress."""
        backlog = self._backlog
        self.bytes += size
        backlog.held += size
        if self.bytes > backlog.per_stream:
            self.drop(f"more than {backlog.per_stream} bytes wait for it")
        elif backlog.held > backlog.total:
            self.drop(f"more than {backlog.total} bytes wait for all slow clients of this gateway")

    def take(self, size: int) -> None:
        """A whole answer of this size is being sent, until `taken`."""
        self._backlog.taking[self] = size

    def taken(self) -> None:
        """The client reads again, or the answer is over: nothing of it waits."""
        self._backlog.taking.pop(self, None)
        self._backlog.held -= self.bytes
        self.bytes = 0
        self.blocked_since = 0.0

    def check(self, interval: float) -> None:
        """Called every `interval` seconds. Drops the client if the same send has been in progress for too long.

        Looks are counted, not seconds: this process may itself have stood still.
        """
        since = self.blocked_since
        self._looks = self._looks + 1 if since and since == self._seen else 0
        self._seen = since
        if self._looks and self._looks * interval >= self._backlog.stall:
            self.drop(f"it has read nothing for {self._backlog.stall:g} s")
