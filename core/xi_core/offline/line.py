"""`Line`: one replica's channel as an offline program holds it: whole requests out, whole answers back. Made by `private`, on its loop."""

from __future__ import annotations

import asyncio
import itertools
import time

import msgspec

from xi_core.cluster.messages import ReplicaRoute
from xi_core.errors import ErrorBody, ReplicaLost, TransportError, XiError
from xi_core.transport.base import Transport
from xi_core.wire import UNREADABLE
from xi_core.wire.frames import Abort, Data, Open, Ping, Pong, Submit, decode_from_replica, encode

PING_INTERVAL = 0.25
"""The replica ends the requests of somebody whom it doesn't hear for a second."""


class _Refusal(msgspec.Struct):
    error: ErrorBody


class _Exchange:
    """A request that is open: what has come of its answer."""

    __slots__ = ("done", "opened", "parts")

    def __init__(self) -> None:
        self.opened: Open | None = None
        self.parts: list[bytes] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Line:
    """The channel to one life of a replica. When that life ends, or only this channel, it is `lost` and every open request raises
    `ReplicaLost`."""

    def __init__(self, transport: Transport, route: ReplicaRoute) -> None:
        """Raises `TransportError` for an endpoint that can't be dialled."""
        self.route = route
        self.lost_at: float | None = None
        """When it was lost, on the clock of `time.monotonic`."""
        self._ids = itertools.count(1)
        self._open: dict[int, _Exchange] = {}
        self._channel = transport.connect(route.endpoint, self._receive, self._lose)
        self._pings = asyncio.create_task(self._ping())

    @property
    def lost(self) -> bool:
        """Whether nothing comes by it any more."""
        return self.lost_at is not None

    @property
    def open(self) -> int:
        """Requests that have no answer yet."""
        return len(self._open)

    async def ask(self, path: str, body: bytes) -> bytes:
        """The body of the answer to one request, not streamed. Cancelled, it aborts the request.

        Raises the error that the replica answers, by its class, or `ReplicaLost`.
        """
        if self.lost:
            raise _lost()
        number, exchange = next(self._ids), _Exchange()
        self._open[number] = exchange
        try:
            self._send(encode(Submit(number, path, body)))
            await exchange.done
        except asyncio.CancelledError:
            self._send(encode(Abort(number)))
            raise
        finally:
            self._open.pop(number, None)
        return _answer(exchange)

    async def close(self) -> None:
        """Hang up."""
        self._lose()
        await self._channel.close()

    def _send(self, message: bytes) -> None:
        if self.lost:
            return
        try:
            self._channel.send(message)
        except TransportError:
            self._lose()

    async def _ping(self) -> None:
        for number in itertools.count(1):
            self._send(encode(Ping(number)))
            await asyncio.sleep(PING_INTERVAL)

    def _receive(self, message: bytes) -> None:
        try:
            received = decode_from_replica(message)
        except UNREADABLE:  # a replica of this very installation can't send it
            self._lose()
            return
        if isinstance(received, Pong):
            return
        for frame in received.frames:
            exchange = self._open.get(frame.id)
            if exchange is None:
                continue  # aborted a moment ago
            if isinstance(frame, Open):
                exchange.opened = frame
            elif isinstance(frame, Data):
                exchange.parts.append(frame.data)
            elif not exchange.done.done():
                exchange.done.set_result(None)

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost_at = time.monotonic()
        self._pings.cancel()
        self._channel.abort()
        for exchange in self._open.values():
            if not exchange.done.done():
                exchange.done.set_exception(_lost())


def _lost() -> ReplicaLost:
    return ReplicaLost("the process that runs the model has ended in the middle of its work")


def _answer(exchange: _Exchange) -> bytes:
    """The body. Raises the error that it is, where the status says so or it broke off."""
    body, opened = b"".join(exchange.parts), exchange.opened
    if opened is None:
        raise ReplicaLost("the process that runs the model sent an answer without a beginning")
    if opened.status == 200:
        return body
    error = msgspec.json.decode(body, type=_Refusal).error
    error.status, error.retry_after = opened.status, opened.retry_after
    raise XiError.from_body(error)
