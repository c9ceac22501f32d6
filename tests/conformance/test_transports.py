"""One body of checks over every built-in transport: what `xi_core.transport.base` promises."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from xi_core.errors import ChannelClosed, ChannelFull, TransportError
from xi_core.plugins import PluginHub
from xi_core.testing.server import free_port
from xi_core.testing.waiting import until
from xi_core.transport.base import Channel, Listener, Transport
from xi_core.transport.schemes import by_scheme
from xi_core.transport.security import ClientSecurity, KeyPair, ServerSecurity
from xi_plugins.transports.inproc import InprocTransport
from xi_plugins.transports.zmq import ZmqTransport

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


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t")


@pytest.fixture(params=KINDS)
async def wire(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Wire]:
    transport = InprocTransport() if request.param == "inproc" else ZmqTransport()
    wire = Wire(transport, endpoint_of(request.param, folder), secure="curve" in request.param)
    yield wire
    await wire.close()


@pytest.fixture(params=KINDS[:2])
async def zmq_wire(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Wire]:
    wire = Wire(ZmqTransport(), endpoint_of(request.param, folder))
    yield wire
    await wire.close()


async def test_messages_arrive_in_order_both_ways(wire: Wire) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    sent = [b"%d" % i for i in range(900)]
    for message in sent:
        dialled.channel.send(message)
        listener.send(dialled.peer, message)
    await until(lambda: len(wire.received) == 900 and len(dialled.received) == 900)
    assert [message for _, message in wire.received] == sent
    assert dialled.received == sent


async def test_more_messages_than_one_callback_takes(wire: Wire) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    for start in range(0, 6000, 500):
        for i in range(start, start + 500):
            listener.send(dialled.peer, b"%d" % i)
        await until(lambda start=start: len(dialled.received) >= start)
    await until(lambda: len(dialled.received) == 6000)
    assert dialled.received == [b"%d" % i for i in range(6000)]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_537, MiB])
async def test_messages_arrive_whole(wire: Wire, size: int) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    dialled.channel.send(message)
    listener.send(dialled.peer, message)
    await until(lambda: wire.received and dialled.received)
    assert wire.received == [(dialled.peer, message)]
    assert dialled.received == [message]


async def test_send_never_calls_back_at_once(wire: Wire) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    listener.send(dialled.peer, b"x")
    dialled.channel.send(b"x")
    assert not wire.received
    assert not dialled.received


async def test_answers_from_within_a_callback(wire: Wire) -> None:
    listener = wire.listen(on_message=lambda peer, message: listener.send(peer, message + b"!"))
    dialled = wire.connect()
    for i in range(100):
        dialled.channel.send(b"%d" % i)
    await until(lambda: len(dialled.received) == 100)
    assert dialled.received == [b"%d!" % i for i in range(100)]


async def test_several_channels_are_kept_apart(wire: Wire) -> None:
    listener = wire.listen()
    all_dialled = [await wire.connected() for _ in range(5)]
    assert len({dialled.peer for dialled in all_dialled}) == 5
    for i, dialled in enumerate(all_dialled):
        listener.send(dialled.peer, b"to %d" % i)
    await until(lambda: all(dialled.received for dialled in all_dialled))
    assert [dialled.received for dialled in all_dialled] == [[b"to %d" % i] for i in range(5)]


async def test_a_new_connection_has_a_new_name(wire: Wire) -> None:
    wire.listen()
    first = await wire.connected()
    await first.channel.close()
    second = await wire.connected()
    assert first.peer != second.peer


async def test_dialling_before_listening(wire: Wire) -> None:
    wire.name_port()
    dialled = wire.connect()
    dialled.channel.send(b"early 1")
    dialled.channel.send(b"early 2")
    await asyncio.sleep(0.12)
    wire.listen()
    await until(lambda: len(wire.received) == 2)
    assert [message for _, message in wire.received] == [b"early 1", b"early 2"]
    assert dialled.lost == 0


async def test_nobody_there_is_a_loss(wire: Wire) -> None:
    wire.name_port()
    started = time.monotonic()
    dialled = wire.connect()
    await until(lambda: dialled.lost)
    assert 1.0 < time.monotonic() - started < 4.0
    with pytest.raises(ChannelClosed):
        dialled.channel.send(b"x")


async def test_listener_closed_is_a_loss_once(wire: Wire) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    other = await wire.connected()
    await listener.close()
    await until(lambda: dialled.lost and other.lost, 2.0)
    with pytest.raises(ChannelClosed):
        dialled.channel.send(b"x")
    with pytest.raises(ChannelClosed):
        listener.send(dialled.peer, b"x")
    await dialled.channel.close()
    assert (dialled.lost, other.lost) == (1, 1)


async def test_listener_aborted_is_a_loss_without_what_was_queued(wire: Wire) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    listener.abort()
    listener.abort()
    with pytest.raises(ChannelClosed):
        listener.send(dialled.peer, b"x")
    await until(lambda: dialled.lost == 1, 2.0)
    await listener.close()
    assert dialled.received == []


async def test_last_messages_come_before_the_loss(wire: Wire) -> None:
    listener = wire.listen()
    log: list[bytes] = []
    channel = wire.dial(log.append, lambda: log.append(b"lost"))
    channel.send(b"hello")
    await until(lambda: wire.received)
    for i in range(700):
        listener.send(wire.received[0][0], b"%d" % i)
    await listener.close()
    await until(lambda: b"lost" in log)
    assert log == [b"%d" % i for i in range(700)] + [b"lost"]


async def test_last_messages_survive_the_channel_closing(wire: Wire) -> None:
    wire.listen()
    dialled = wire.connect()
    for i in range(500):
        dialled.channel.send(b"%d" % i)
    await dialled.channel.close()
    await until(lambda: len(wire.received) == 500)
    assert dialled.lost == 0


async def test_abort_and_close_are_idempotent_and_silent(wire: Wire) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    dialled.channel.abort()
    dialled.channel.abort()
    await dialled.channel.close()
    with pytest.raises(ChannelClosed):
        dialled.channel.send(b"x")
    await until(lambda: _is_gone(listener, dialled.peer))
    await listener.close()
    await listener.close()
    assert dialled.lost == 0


def _is_gone(listener: Listener, peer: bytes) -> bool:
    try:
        listener.send(peer, b"x")
    except ChannelClosed:
        return True
    return False


async def test_closing_from_within_a_callback(wire: Wire) -> None:
    listener = wire.listen()
    got: list[bytes] = []
    dialled = Dialled()

    def take(message: bytes) -> None:
        got.append(message)
        dialled.channel.abort()

    dialled.channel = wire.dial(take, dialled.lose)
    dialled.channel.send(b"hello")
    await until(lambda: wire.received)
    for _ in range(3):
        listener.send(wire.received[0][0], b"x")
    await until(lambda: _is_gone(listener, wire.received[0][0]))
    assert got == [b"x"]
    assert dialled.lost == 0


async def test_an_error_in_a_callback_stops_nothing(wire: Wire) -> None:
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    got: list[bytes] = []

    def take(peer: bytes, message: bytes) -> None:
        got.append(message)
        if message == b"1":
            raise ValueError("a mistake of the receiver")

    wire.listen(on_message=take)
    dialled = wire.connect()
    for i in range(4):
        dialled.channel.send(b"%d" % i)
    await until(lambda: len(got) == 4)
    assert [type(error["exception"]) for error in errors] == [ValueError]


async def test_who_does_not_read_fills_the_queue(wire: Wire) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    message = b"x" * 100_000
    with pytest.raises(ChannelFull):
        fill(lambda: dialled.channel.send(message))
    with pytest.raises(ChannelFull):
        fill(lambda: listener.send(dialled.peer, message))
    await until(lambda: dialled.received)
    await until(lambda: not _is_full(dialled.channel))
    assert dialled.lost == 0


def fill(send: Callable[[], None]) -> None:
    """Send without awaiting anything, so that nothing is read."""
    for _ in range(20_000):
        send()


def _is_full(channel: Channel) -> bool:
    try:
        channel.send(b"x")
    except ChannelFull:
        return True
    return False


async def test_an_unknown_peer_is_closed(wire: Wire) -> None:
    listener = wire.listen()
    with pytest.raises(ChannelClosed):
        listener.send(b"nobody", b"x")


async def test_an_oversize_message_is_refused_by_the_sender(wire: Wire) -> None:
    listener = wire.listen()
    dialled = await wire.connected()
    huge = bytes(64 * MiB + 1)
    with pytest.raises(TransportError, match="limit"):
        dialled.channel.send(huge)
    with pytest.raises(TransportError, match="limit"):
        listener.send(dialled.peer, huge)


async def test_an_address_is_taken_once(wire: Wire) -> None:
    wire.listen()
    with pytest.raises(TransportError):
        wire.listen()
    dialled = await wire.connected()
    assert dialled.lost == 0


async def test_bad_endpoints_are_refused(wire: Wire) -> None:
    with pytest.raises(TransportError):
        wire.transport.listen("nonsense", lambda peer, message: None)
    with pytest.raises(TransportError):
        wire.transport.connect("nonsense", lambda message: None, lambda: None)


async def test_a_local_address_is_free_again_at_once(wire: Wire) -> None:
    if wire.endpoint.startswith("tcp"):
        pytest.skip("the kernel frees a TCP port when ZeroMQ's own thread has closed it")
    for _ in range(20):
        listener = wire.listen()
        await wire.connected()
        await listener.close()
    listener = wire.listen()
    await wire.connected()


async def test_the_socket_file_is_removed(folder: Path) -> None:
    listener = ZmqTransport().listen(f"ipc://{folder}/x.sock", lambda peer, message: None)
    assert (folder / "x.sock").is_socket()
    await listener.close()
    assert not (folder / "x.sock").exists()


async def test_a_stale_socket_file_is_replaced(folder: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(f"{folder}/x.sock")
    dead.close()
    wire = Wire(ZmqTransport(), f"ipc://{folder}/x.sock")
    wire.listen()
    assert (await wire.connected()).lost == 0
    await wire.close()


async def test_other_files_and_long_paths_are_left_alone(folder: Path) -> None:
    (folder / "x.sock").write_text("precious")
    with pytest.raises(TransportError, match="no socket"):
        ZmqTransport().listen(f"ipc://{folder}/x.sock", lambda peer, message: None)
    assert (folder / "x.sock").read_text() == "precious"
    with pytest.raises(TransportError):
        ZmqTransport().listen(f"ipc://{folder}/{'x' * 120}", lambda peer, message: None)
    with pytest.raises(TransportError):
        ZmqTransport().connect(f"ipc://{folder}/{'x' * 120}", lambda message: None, lambda: None)


LISTEN = """
import asyncio, sys
from xi_plugins.transports.zmq import ZmqTransport
async def main():
    listener = ZmqTransport().listen(sys.argv[1], lambda peer, message: listener.send(peer, message))
    print(listener.endpoint, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


@pytest.fixture
def child(zmq_wire: Wire) -> Iterator[subprocess.Popen[str]]:
    """A process that echoes, and whose end is always certain."""
    process = subprocess.Popen([sys.executable, "-c", LISTEN, zmq_wire.endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        zmq_wire.endpoint = process.stdout.readline().strip()
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()


async def test_a_killed_listener_is_a_loss_within_a_second(zmq_wire: Wire, child: subprocess.Popen[str]) -> None:
    dialled = zmq_wire.connect()
    dialled.channel.send(b"echo")
    await until(lambda: dialled.received == [b"echo"])
    child.kill()
    await until(lambda: dialled.lost, 1.0)
    assert dialled.lost == 1


async def test_a_channel_never_resumes_on_another_listener(zmq_wire: Wire, child: subprocess.Popen[str]) -> None:
    dialled = zmq_wire.connect()
    dialled.channel.send(b"echo")
    await until(lambda: dialled.received)
    child.kill()
    child.wait()
    with suppress(TransportError):
        dialled.channel.send(b"to the dead")  # the loop has not seen the loss yet
    zmq_wire.listen()
    await until(lambda: dialled.lost, 1.0)
    fresh = await zmq_wire.connected()
    assert zmq_wire.received == []
    assert (dialled.lost, fresh.lost) == (1, 0)


async def test_garbage_leaves_other_channels_alone(zmq_wire: Wire) -> None:
    listener = zmq_wire.listen()
    good = await zmq_wire.connected()
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.connect(zmq_wire.endpoint)
    raw.send_multipart([b"one", b"two", b"three"])
    raw.send(b"alone")
    bare = _bare_socket(zmq_wire.endpoint)
    bare.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 64)
    await until(lambda: b"alone" in [message for _, message in zmq_wire.received])
    good.channel.send(b"still here")
    listener.send(good.peer, b"you too")
    await until(lambda: (good.peer, b"still here") in zmq_wire.received and good.received)
    bare.close()
    raw.close(0)
    assert good.lost == 0


def _bare_socket(endpoint: str) -> socket.socket:
    if endpoint.startswith("ipc://"):
        bare = socket.socket(socket.AF_UNIX)
        bare.connect(endpoint.removeprefix("ipc://"))
        return bare
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


async def test_a_listener_that_is_no_zmq_is_a_loss(folder: Path) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    wire = Wire(ZmqTransport(), f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    dialled = wire.connect()
    await until(lambda: dialled.lost)
    silent.close()


async def test_an_oversize_message_disconnects_its_sender(zmq_wire: Wire) -> None:
    zmq_wire.listen()
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.connect(zmq_wire.endpoint)
    monitor = raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    raw.send(bytes(64 * MiB + 1))
    await until(lambda: monitor.poll(0))
    raw.disable_monitor()
    monitor.close(0)
    raw.close(0)
    assert zmq_wire.received == []


def test_transports_are_found_by_scheme() -> None:
    hub = PluginHub()
    import xi_plugins.transports

    hub.register(xi_plugins.transports, "transports")
    assert isinstance(by_scheme(hub.transports, "ipc:///x"), ZmqTransport)
    assert isinstance(by_scheme(hub.transports, "tcp://127.0.0.1:1"), ZmqTransport)
    assert isinstance(by_scheme(hub.transports, "inproc://x"), InprocTransport)
    with pytest.raises(TransportError, match="known schemes: inproc, ipc, tcp"):
        by_scheme(hub.transports, "carrier-pigeon://x")
    with pytest.raises(TransportError, match="no endpoint"):
        by_scheme(hub.transports, "/x")
