"""Who is let in over encrypted TCP, who isn't, and what each of them is told."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest
import zmq

from xi_core.errors import ChannelClosed, ChannelRefused, ConfigError, ProtocolMismatch, TransportError, XiError
from xi_core.replica.process import service_for
from xi_core.replica.server import ReplicaServer
from xi_core.testing.fakes import CountingEngine
from xi_core.testing.harness import plan_for
from xi_core.testing.waiting import until
from xi_core.transport import rpc
from xi_core.transport.base import Channel, Listener
from xi_core.transport.port_range import listen as listen_in_range
from xi_core.transport.rpc import Calls, Link, LinkServer, Vocabulary, dial
from xi_core.transport.security import ClientSecurity, KeyPair, ServerSecurity
from xi_core.wire import frames
from xi_core.wire.frames import Ping
from xi_core.wire.plan import ReplicaSecurity
from xi_plugins.transports import zmq_security, zmq_sockets
from xi_plugins.transports.zmq import ZmqTransport

ANY_PORT = "tcp://127.0.0.1:0"
SOON = 4.0
"""Seconds within which who dials must know."""
EMPTY = Vocabulary({}, [])


class House:
    """A listener with keys that lets one guest in."""

    def __init__(self) -> None:
        self.keys, self.guest = KeyPair.new(), KeyPair.new()
        self.names: dict[str, str] = {self.guest.public: "guest"}
        self.received: list[tuple[bytes, bytes]] = []
        self.opened: list[Channel | Listener] = []
        self.listener = self.listen()

    @property
    def server(self) -> ServerSecurity:
        return ServerSecurity(self.keys, self.names.get)

    def listen(self, endpoint: str = ANY_PORT) -> Listener:
        listener = ZmqTransport().listen(endpoint, lambda peer, message: self.received.append((peer, message)), self.server)
        self.opened.append(listener)
        return listener

    def dial(self, keys: KeyPair | None = None, server: str = "") -> tuple[Channel, list[float]]:
        lost: list[float] = []
        security = ClientSecurity(keys or self.guest, server or self.keys.public)
        channel = ZmqTransport().connect(self.listener.endpoint, lambda message: None, lambda: lost.append(time.monotonic()), security)
        self.opened.append(channel)
        return channel, lost

    async def still_serves(self) -> None:
        """The guest is let in as before."""
        channel, lost = self.dial()
        word = os.urandom(8)
        channel.send(word)
        await until(lambda: word in [message for _, message in self.received])
        assert not lost
        channel.abort()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    for thing in made.opened:
        await thing.close(0)


async def test_the_listener_knows_each_peers_key(house: House) -> None:
    other = KeyPair.new()
    house.names[other.public] = "other"
    for keys in (house.guest, other):
        house.dial(keys)[0].send(keys.public.encode())
    await until(lambda: len(house.received) == 2)
    for peer, message in house.received:
        assert house.listener.key_of(peer) == message.decode()
    assert house.listener.key_of(b"nobody") == ""


async def test_a_key_that_is_not_on_the_list(house: House, caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    stranger = KeyPair.new()
    with caplog.at_level(logging.WARNING):
        channel, lost = house.dial(stranger)
        channel.send(b"let me in")
        await until(lambda: lost, SOON)
    assert lost[0] - started < SOON
    assert isinstance(channel.error, ChannelRefused)
    assert "refused the connection: the key of this process is not known there" in channel.error.message
    assert f"refused: its key {stranger.public} is not known here" in caplog.text
    assert house.received == []
    await house.still_serves()


async def test_another_server_key_than_expected(house: House) -> None:
    channel, lost = house.dial(server=KeyPair.new().public)
    channel.send(b"secret of the guest")
    await until(lambda: lost, SOON)
    assert isinstance(channel.error, ChannelClosed)
    assert "its key may be another than the one expected" in channel.error.message
    assert house.received == []
    await house.still_serves()


async def test_no_key_at_all(house: House) -> None:
    lost: list[bool] = []
    channel = ZmqTransport().connect(house.listener.endpoint, lambda message: None, lambda: lost.append(True))
    house.opened.append(channel)
    channel.send(b"plain")
    await until(lambda: lost, SOON)
    assert channel.error is not None
    assert "one side encrypts and the other doesn't" in channel.error.message
    assert house.received == []
    await house.still_serves()


async def test_keys_where_the_listener_has_none() -> None:
    heard: list[bytes] = []
    plain = ZmqTransport().listen(ANY_PORT, lambda peer, message: heard.append(message))
    lost: list[bool] = []
    security = ClientSecurity(KeyPair.new(), KeyPair.new().public)
    channel = ZmqTransport().connect(plain.endpoint, lambda message: None, lambda: lost.append(True), security)
    channel.send(b"not for everybody")
    await until(lambda: lost, SOON)
    assert heard == []
    await plain.close()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 64,
        b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x19\x05READY" + bytes(19),
        b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x04\xc8\x05HELLO" + b"\x01\0" + bytes(192),
        b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"PLAIN".ljust(20, b"\0") + bytes(32) + b"\x04\x0c\x05HELLO\x02me\x02me",
        b"",
    ],
    ids=["http", "noise", "null", "curve-of-zeros", "plain", "nothing"],
)
async def test_bytes_that_are_no_encrypted_conversation(house: House, said: bytes) -> None:
    host, _, port = house.listener.endpoint.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port))) as bare:
        bare.sendall(said)
        await house.still_serves()
        bare.setblocking(False)
        await until(lambda: _ended(bare), SOON)
    assert [message for _, message in house.received if len(message) != 8] == []


def _ended(bare: socket.socket) -> bool:
    try:
        return not bare.recv(65536)
    except BlockingIOError:
        return False
    except OSError:
        return True


async def test_garbage_from_a_guest_is_its_own_trouble(house: House) -> None:
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.curve_serverkey, raw.curve_publickey, raw.curve_secretkey = (
        key.encode() for key in (house.keys.public, house.guest.public, house.guest.secret)
    )
    raw.connect(house.listener.endpoint)
    raw.send_multipart([b"one", b"two", b"three"])
    for size in (0, 1, 255, 70_000):
        raw.send(os.urandom(size))
    await until(lambda: len(house.received) == 5)
    assert house.listener.key_of(house.received[0][0]) == house.guest.public
    await house.still_serves()
    raw.close(0)


async def test_who_is_struck_off_is_out(house: House) -> None:
    house.names.clear()
    channel, lost = house.dial()
    await until(lambda: lost, SOON)
    assert isinstance(channel.error, ChannelRefused)


async def test_a_judge_that_fails_lets_nobody_in(house: House) -> None:
    def fail(key: str) -> str | None:
        raise RuntimeError("no idea")

    listener = ZmqTransport().listen(ANY_PORT, lambda peer, message: None, ServerSecurity(house.keys, fail))
    house.opened.append(listener)
    lost: list[bool] = []
    security = ClientSecurity(house.guest, house.keys.public)
    channel = ZmqTransport().connect(listener.endpoint, lambda message: None, lambda: lost.append(True), security)
    await until(lambda: lost, SOON)
    assert isinstance(channel.error, ChannelRefused)
    await house.still_serves()


async def test_nobody_is_let_in_where_nobody_judges(house: House) -> None:
    assert zmq_security._zap is not None
    zmq_security._zap.guards.clear()
    zmq_security._zap.close_if_idle()
    channel, lost = house.dial()
    channel.send(b"anybody there?")
    await until(lambda: lost, SOON)
    assert house.received == []


async def test_listeners_have_lists_of_their_own_and_come_and_go(house: House) -> None:
    for _ in range(5):
        other = House()
        channel, lost = other.dial(house.guest)
        await until(lambda lost=lost: lost, SOON)
        assert isinstance(channel.error, ChannelRefused)
        await other.still_serves()
        for thing in other.opened:
            await thing.close(0)
    await house.still_serves()
    await house.listener.close()
    house.listener = house.listen()
    await house.still_serves()


def test_a_later_loop_of_the_process_has_its_own_judge() -> None:
    left_open: list[House] = []

    async def once() -> None:
        left_open.append(House())
        await left_open[-1].still_serves()

    asyncio.run(once())
    asyncio.run(once())
    for house in left_open:
        zmq_sockets.close_socket(house.listener._sock, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0", "tcp://192.0.2.7:9998", "tcp://some.host:9998"])
async def test_off_loopback_there_must_be_keys(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="needs keys"):
        ZmqTransport().listen(endpoint, lambda peer, message: None)
    with pytest.raises(ConfigError, match="needs keys"):
        ZmqTransport().connect(endpoint, lambda message: None, lambda: None)


async def test_off_loopback_with_keys(house: House) -> None:
    house.listener = house.listen("tcp://0.0.0.0:0")
    house.listener.endpoint = house.listener.endpoint.replace("0.0.0.0", "127.0.0.1")
    await house.still_serves()


@pytest.mark.skipif(not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")
async def test_ipv6(house: House) -> None:
    house.listener = house.listen("tcp://[::1]:0")
    assert house.listener.endpoint.startswith("tcp://[::1]:")
    await house.still_serves()


@pytest.mark.parametrize("bad", ["", "x" * 39, "x" * 41, "ä" * 40, " " * 40])
async def test_what_is_no_key_is_refused_at_once(bad: str) -> None:
    with pytest.raises(ConfigError, match="is no key"):
        ZmqTransport().listen(ANY_PORT, lambda peer, message: None, ServerSecurity(KeyPair("x" * 40, bad), lambda key: key))
    with pytest.raises(ConfigError, match="is no key"):
        ZmqTransport().connect("tcp://127.0.0.1:9", lambda message: None, lambda: None, ClientSecurity(KeyPair.new(), bad))


def test_a_secret_key_is_not_printed() -> None:
    keys = KeyPair.new()
    assert keys.secret not in repr(keys) + repr(ClientSecurity(keys, keys.public)) + repr(ServerSecurity(keys, lambda key: key))


async def test_ports_of_a_range(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def take(first: int, last: int) -> Listener:
            listener = listen_in_range(ZmqTransport(), f"tcp://127.0.0.1:{first}-{last}", lambda peer, message: None, house.server)
            house.opened.append(listener)
            return listener

        with pytest.raises(TransportError, match="widen XI_PORT_RANGE"):
            take(port, port)
        found = int(take(port, port + 20).endpoint.rpartition(":")[2])
        assert port < found <= port + 20


# ---- links ---------------------------------------------------------------------------------------


class Desk:
    """A link server with keys."""

    def __init__(self, house: House) -> None:
        self.links: list[Link] = []
        self.house = house
        self.server = LinkServer(ZmqTransport(), ANY_PORT, EMPTY, self._accept, lambda link: None, house.server)

    def _accept(self, link: Link) -> Calls:
        self.links.append(link)
        return {}

    def dial(self, keys: KeyPair | None = None, on_closed: Callable[[], None] = lambda: None) -> Link:
        security = ClientSecurity(keys or self.house.guest, self.house.keys.public)
        return dial(ZmqTransport(), self.server.endpoint, EMPTY, {}, on_closed, security)


@pytest.fixture
async def desk(house: House) -> AsyncIterator[Desk]:
    made = Desk(house)
    yield made
    await made.server.close()


async def test_a_link_tells_who_is_at_the_other_end(desk: Desk) -> None:
    link = desk.dial()
    await until(lambda: desk.links)
    assert (desk.links[0].peer_key, desk.links[0].peer_name) == (desk.house.guest.public, "guest")
    await link.close()


async def test_a_link_is_refused_in_words(desk: Desk) -> None:
    link = desk.dial(KeyPair.new())
    await asyncio.wait_for(link.closed.wait(), SOON)
    assert isinstance(link._reason, ChannelRefused)
    assert desk.links == []


async def test_an_older_protocol_is_told_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "PROTOCOL", rpc.PROTOCOL - 1)
    link = desk.dial()
    await asyncio.wait_for(link.closed.wait(), SOON)
    assert isinstance(link._reason, ProtocolMismatch)
    assert "run the same version of xi" in link._reason.message
    assert desk.links == []


async def test_who_is_struck_off_between_handshake_and_greeting(desk: Desk) -> None:
    link = desk.dial()
    link.receive = lambda message: None  # type: ignore[method-assign]
    await until(lambda: desk.links)
    desk.house.names.clear()
    refusal = desk.server._name(desk.links[0])
    assert isinstance(refusal, ChannelRefused)
    await link.close()


def test_a_refusal_keeps_its_class_on_the_way() -> None:
    assert isinstance(XiError.from_body(ChannelRefused("no").body()), ChannelRefused)


# ---- replicas ------------------------------------------------------------------------------------


async def test_a_replica_lets_only_gateways_in() -> None:
    gateways, own = KeyPair.new(), KeyPair.new()
    plan = plan_for("x:Y", "", "fake")
    plan.endpoint = "tcp://127.0.0.1:20000-29999"
    plan.security = ReplicaSecurity(gateways=gateways.public, public=own.public, secret=own.secret)
    assert own.secret not in repr(plan)
    engine = CountingEngine()
    service = service_for(plan, engine, engine.load(plan, lambda stage, share: None))
    server = ReplicaServer(service, ZmqTransport())
    assert 20000 <= int(server.endpoint.rpartition(":")[2]) <= 29999
    answers: list[bytes] = []
    channels = {}
    for name, keys in (("gateway", gateways), ("stranger", KeyPair.new())):
        lost: list[bool] = []
        security = ClientSecurity(keys, own.public)
        channel = ZmqTransport().connect(server.endpoint, answers.append, lambda lost=lost: lost.append(True), security)
        channel.send(frames.encode(Ping(1)))
        channels[name] = channel, lost
    await until(lambda: channels["stranger"][1] and answers)
    assert isinstance(channels["stranger"][0].error, ChannelRefused)
    assert len(answers) == 1
    for channel, _ in channels.values():
        channel.abort()
    await server.close()
    service.close(2.0)
