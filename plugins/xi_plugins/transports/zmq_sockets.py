"""ZeroMQ sockets for the `zmq` transport: how they are made, read from the event loop, and closed. One ZeroMQ context per process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import zmq

from xi_core.errors import TransportError
from xi_plugins.transports.zmtp import CONNECT_TIMEOUT
from xi_plugins.transports.zmtp_frames import MAX_MESSAGE

BATCH = 512
"""Messages read in one callback of the loop."""
MAX_SOCKETS = 8192
NEVER_MS = 3_600_000
"""Reconnect interval in milliseconds. Not -1: that makes ZeroMQ drop what was received but not yet read when a connection ends."""

_open_sockets = 0


class Reader:
    """Reads a ZeroMQ socket from the loop. `take(limit)` reads up to so many messages and tells whether there are no more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: zmq.Socket[bytes], take: Callable[[int], bool]) -> None:
        self.looking = False
        """A look is due or under way, so that no other needs to be scheduled."""
        self._loop = loop
        self._take = take
        self._stopped = False
        self._fd: int = sock.FD
        try:
            loop.add_reader(self._fd, self._ready)
        except NotImplementedError:
            raise TransportError(
                f"the zmq transport needs a loop with add_reader, which {type(loop).__name__} lacks; on Windows use SelectorEventLoop"
            ) from None

    def look_soon(self) -> None:
        """Look for messages in the loop's next round."""
        if not self.looking:
            self.looking = True
            self._loop.call_soon(self._run)

    def stop(self) -> None:
        """Read no more. Must come before the socket is closed."""
        self._stopped = True
        self._loop.remove_reader(self._fd)

    def _ready(self) -> None:
        if not self.looking:
            self._run()

    def _run(self) -> None:
        self.looking, empty = True, False
        try:
            empty = self._stopped or self._take(BATCH)
        finally:  # also after an error of who was told of a message: the rest must not wait for another edge
            if empty or self._stopped:
                self.looking = False
            else:
                self._loop.call_soon(self._run)


def open_socket(kind: int, high_water: int) -> zmq.Socket[bytes]:
    """A socket of the process's context. Raises `TransportError` where there can be no more."""
    global _open_sockets
    context: zmq.Context[Any] = zmq.Context.instance()
    if _open_sockets == 0:
        with contextlib.suppress(zmq.ZMQError):  # too late when another library has made a socket; then its limit holds
            context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    try:
        sock: zmq.Socket[bytes] = context.socket(kind)
    except zmq.ZMQError as error:
        raise TransportError(f"no socket can be made: {error}; the process may have too many open files (ulimit -n)") from None
    _open_sockets += 1
    for option, value in (
        (zmq.SNDHWM, high_water),
        (zmq.RCVHWM, high_water),
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, MAX_MESSAGE),
        (zmq.BACKLOG, 512),
        (zmq.RECONNECT_IVL, NEVER_MS),
        (zmq.HANDSHAKE_IVL, round(CONNECT_TIMEOUT * 1000)),
    ):
        sock.setsockopt(option, value)
    return sock


def close_socket(sock: zmq.Socket[bytes], linger: float) -> None:
    """Close a socket; ZeroMQ goes on sending what is queued for `linger` seconds, also while the process exits."""
    global _open_sockets
    _open_sockets -= 1
    sock.close(linger=round(linger * 1000))


def flush(seconds: float) -> None:
    """Let closed sockets send what they still hold, for so long at most. Not with an open one, which would keep its context."""
    if _open_sockets == 0:
        ending = threading.Thread(target=zmq.Context.instance().term, name="zmq-flush", daemon=True)  # another library's socket holds it up
        ending.start()
        ending.join(seconds)


def _flush_at_exit(pid: int) -> None:
    """Let closed sockets send what they still hold. Not with an open one, which would block for ever, nor in a fork."""
    if _open_sockets == 0 and os.getpid() == pid:
        zmq.Context.instance().term()


atexit.register(_flush_at_exit, os.getpid())
