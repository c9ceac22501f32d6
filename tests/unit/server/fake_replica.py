"""A replica of the in-process transport that does what a test tells it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from xi_core.cluster.messages import ReplicaRoute
from xi_core.importing import import_path
from xi_core.wire.frames import Abort, Data, End, Frame, Load, Open, Ping, Pong, Step, Submit, decode_from_gateway, encode

INPROC = "xi_plugins.transports.inproc:InprocTransport"
ZMQ = "xi_plugins.transports.zmq:ZmqTransport"
SSE = "text/event-stream; charset=utf-8"
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"

numbers = itertools.count(1)
"""For names that nothing else has."""


class FakeReplica:
    """Answers pings; keeps submissions and aborts; `script` is called for each submission."""

    def __init__(
        self,
        replica_id: str = "r1",
        script: Callable[[FakeReplica, Submit], None] | None = None,
        transport: str = INPROC,
        endpoint: str = "",
        workers: tuple[str, ...] = (),
    ) -> None:
        self.replica_id = replica_id
        self.workers = workers
        self.transport = transport
        self.incarnation = f"life-{replica_id}-{next(numbers)}"
        self.answering = self.incarnation
        self.load = Load(slots=4)
        self.silent = False
        self.submitted: list[Submit] = []
        self.aborted: list[int] = []
        self.pings = 0
        self.script = script
        self._peer = b""
        self.listen(endpoint or f"inproc://replica-{next(numbers)}")

    def listen(self, endpoint: str) -> None:
        self.listener = import_path(self.transport)().listen(endpoint, self._take)

    @property
    def route(self) -> ReplicaRoute:
        return ReplicaRoute(
            replica_id=self.replica_id,
            incarnation=self.incarnation,
            endpoint=self.listener.endpoint,
            transport=self.transport,
            slots=4,
            workers=self.workers,
        )

    def _take(self, peer: bytes, message: bytes) -> None:
        self._peer = peer
        said = decode_from_gateway(message)
        if isinstance(said, Ping):
            self.pings += 1
            if not self.silent:
                self.listener.send(peer, encode(Pong(said.seq, self.answering, self.load)))
        elif isinstance(said, Submit):
            self.submitted.append(said)
            if self.script is not None:
                self.script(self, said)
        elif isinstance(said, Abort):
            self.aborted.append(said.id)

    def say(self, **load: Any) -> None:
        """How it is now, without being asked."""
        self.load = Load(slots=4, **load)
        self.listener.send(self._peer, encode(Pong(0, self.answering, self.load)))

    def send(self, *frames: Frame) -> None:
        """One step with these frames."""
        self.listener.send(self._peer, encode(Step(list(frames))))

    def send_bytes(self, message: bytes) -> None:
        self.listener.send(self._peer, message)

    def answer(self, submit: Submit, status: int = 200, body: bytes = b'{"ok":true}', retry_after: float | None = None) -> None:
        """A whole answer in one step."""
        opened = Open(submit.id, status, "application/json", 3, retry_after)
        self.send(opened, Data(submit.id, body, 2), End(submit.id, "stop"))

    async def close(self) -> None:
        await self.listener.close()


def answering(status: int = 200, body: bytes = b'{"ok":true}', retry_after: float | None = None) -> Callable[[FakeReplica, Submit], None]:
    """A script that answers each request at once."""
    return lambda replica, submit: replica.answer(submit, status, body, retry_after)


def opened(submit: Submit) -> Open:
    """The beginning of a stream."""
    return Open(submit.id, 200, SSE, 3)
