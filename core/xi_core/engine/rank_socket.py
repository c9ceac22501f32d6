"""`SocketLink`: rank 0's messages to the others over TCP, for engines whose library has no such link, or one that keeps a CPU busy waiting.

Rank 0 listens at one of its ports. Each of the others connects and says which life of which replica it belongs to, and its rank; what
says anything else is turned away. A message is four bytes of length, big-endian, then the bytes. Nothing is encrypted.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from xi_core.engine.rank_link import RankLink
from xi_core.errors import EngineError
from xi_core.wire.plan import LaunchPlan

RETRY = 0.05
GREETING = 5.0
"""Seconds in which a connection must have said who it is."""
LARGEST = 256 * 1024 * 1024


class SocketLink(RankLink):
    """One end of the link. Make it on all ranks at once."""

    def __init__(self, plan: LaunchPlan, port: int, patience: float) -> None:
        """At rank 0's port of this index. Raises `EngineError` when not all have met within `patience` seconds, or the port is taken."""
        where = plan.rendezvous
        if where is None:
            raise EngineError("this replica has one rank only")
        self._leads = where.rank == 0
        address, until = (where.head.host, where.head.ports[port]), time.monotonic() + patience
        greetings = {f"{plan.replica_id}@{plan.incarnation}/{rank}".encode(): rank for rank in range(1, len(where.world))}
        if self._leads:
            self._peers = _accepted(address, greetings, until)
        else:
            self._peers = [_connected(address, next(text for text, rank in greetings.items() if rank == where.rank), until)]

    def broadcast(self, message: bytes) -> bytes:
        if self._leads:
            for peer in self._peers:
                peer.sendall(struct.pack(">I", len(message)) + message)
            return message
        return _received(self._peers[0])

    def close(self) -> None:
        """Close the connections: whoever waits at the other end is told."""
        for peer in self._peers:
            peer.close()


def _accepted(address: tuple[str, int], greetings: dict[bytes, int], until: float) -> list[socket.socket]:
    """A connection to each of the other ranks."""
    try:
        listening = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    except OSError as error:
        raise EngineError(f"rank 0 can't listen at {address[0]}:{address[1]}: {error.strerror}") from error
    found: dict[int, socket.socket] = {}
    with listening:
        while len(found) < len(greetings):
            peer = _next_peer(listening, until)
            if peer is None:
                missing = ", ".join(str(rank) for rank in greetings.values() if rank not in found)
                for one in found.values():
                    one.close()
                raise EngineError(f"rank 0 waits at {address[0]}:{address[1]}, and rank {missing} did not come")
            rank = _greeted(peer, greetings, min(until, time.monotonic() + GREETING))
            if rank is None or rank in found:
                peer.close()
            else:
                found[rank] = peer
    return list(found.values())


def _next_peer(listening: socket.socket, until: float) -> socket.socket | None:
    """The next that connects; None when the time is over, however many still come."""
    left = until - time.monotonic()
    if left <= 0:
        return None
    listening.settimeout(left)
    try:
        return listening.accept()[0]
    except TimeoutError:
        return None


def _greeted(peer: socket.socket, greetings: dict[bytes, int], until: float) -> int | None:
    """Which rank a connection says it is; None for one that says anything else, or not all of it in time."""
    with contextlib.suppress(OSError):
        rank = greetings.get(_received(peer, largest=max(map(len, greetings)), until=until))
        peer.settimeout(None)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return rank
    return None


def _connected(address: tuple[str, int], greeting: bytes, until: float) -> socket.socket:
    while True:
        try:
            with contextlib.ExitStack() as unless_greeted:
                peer = unless_greeted.enter_context(socket.create_connection(address, timeout=max(0.01, until - time.monotonic())))
                peer.settimeout(None)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                peer.sendall(struct.pack(">I", len(greeting)) + greeting)
                unless_greeted.pop_all()
                return peer
        except OSError as error:
            if time.monotonic() > until:
                raise EngineError(f"rank 0 does not listen at {address[0]}:{address[1]}: {error.strerror or error}") from error
            time.sleep(RETRY)


def _received(peer: socket.socket, largest: int = LARGEST, until: float | None = None) -> bytes:
    (size,) = struct.unpack(">I", exactly(peer, 4, until))
    if size > largest:
        raise ConnectionError(f"a message of {size} bytes was announced, {largest} are the most")
    return exactly(peer, size, until)


def exactly(peer: socket.socket, size: int, until: float | None = None) -> bytes:
    """So many bytes. Raises `ConnectionError` when the other end closes first, `TimeoutError` when they aren't there by `until`."""
    parts: list[bytes] = []
    while size:
        if until is not None:  # anew for each part: who sends byte by byte gets no more time
            peer.settimeout(max(0.001, until - time.monotonic()))
        part = peer.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionError("the other end has closed the connection")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
