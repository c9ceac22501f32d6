"""A transport under test, and what was opened on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xi_core.testing.server import free_port
from xi_core.testing.waiting import until
from xi_core.transport.base import Channel, Listener, Transport
from xi_core.transport.security import ClientSecurity, KeyPair, ServerSecurity

MiB = 1024 * 1024


class Wire:
    """A transport under test with all that was opened on it, so that all is closed."""

    def __init__(self, transport: Transport, endpoint: str, secure: bool = False) -> None:
        server, client = KeyPair.new(), KeyPair.new()
        self.server = ServerSecurity(server, lambda key: "member" if key == client.public else None) if secure else None
        self.client = ClientSecurity(client, server.public) if secure else None
        self.transport = transport
        self.endpoint = endpoint
        self.received: list[tuple[bytes, bytes]] = []
        self.opened: list[Channel | Listener] = []

    def listen(self, endpoint: str | None = None, on_message: Callable[[bytes, bytes], None] | None = None) -> Listener:
        take = on_message or (lambda peer, message: self.received.append((peer, message)))
        listener = self.transport.listen(endpoint or self.endpoint, take, self.server)
        self.opened.append(listener)
        self.endpoint = listener.endpoint
        return listener

    def connect(self, endpoint: str | None = None, on_message: Callable[[bytes], None] | None = None) -> Dialled:
        dialled = Dialled()
        dialled.channel = self.dial(on_message or dialled.received.append, dialled.lose, endpoint)
        return dialled

    def dial(self, on_message: Callable[[bytes], None], on_lost: Callable[[], None], endpoint: str | None = None) -> Channel:
        channel = self.transport.connect(endpoint or self.endpoint, on_message, on_lost, self.client)
        self.opened.append(channel)
        return channel

    def name_port(self) -> None:
        """For tests in which nobody listens (yet): an address that can be dialled."""
        if self.endpoint.startswith("tcp"):
            self.endpoint = f"tcp://127.0.0.1:{free_port()}"

    async def connected(self) -> Dialled:
        """A channel whose connection stands, with the listener's name for it."""
        dialled, count = self.connect(), len(self.received)
        dialled.channel.send(b"hello")
        await until(lambda: len(self.received) > count)
        dialled.peer, _ = self.received.pop()
        return dialled

    async def close(self) -> None:
        for thing in self.opened:
            await thing.close(0)


class Dialled:
    channel: Channel
    peer: bytes

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost = 0

    def lose(self) -> None:
        self.lost += 1


KINDS = ["zmq-ipc", "zmq-tcp", "zmq-tcp-curve", "inproc"]


def endpoint_of(kind: str, folder: Path) -> str:
    return {"zmq-ipc": f"ipc://{folder}/x.sock", "inproc": f"inproc://{folder.name}"}.get(kind, "tcp://127.0.0.1:0")
