"""A dialling channel on a local socket before peers that keep ZMTP, break it, or stop reading."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from xi_core.errors import ChannelClosed, ChannelFull, TransportError
from xi_core.testing.waiting import until
from xi_core.transport.base import Channel
from xi_plugins.transports import zmtp
from xi_plugins.transports.zmq import ZmqTransport
from xi_plugins.transports.zmtp_frames import GREETING, LONG, MAX_MESSAGE, READY, command_frame, message_frame

ROUTER_READY = command_frame(b"READY", b"\x0bSocket-Type\0\0\0\x06ROUTER")
OPENING = GREETING + ROUTER_READY


class RawPeer:
    """A listening local socket that knows no protocol, with one channel that dials it."""

    def __init__(self, path: Path, high_water: int = 1000) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.setblocking(False)
        self._listening.bind(str(path))
        self._listening.listen()
        self._sockets = [self._listening]
        self.log: list[bytes] = []
        self.on_message: Callable[[bytes], None] = self.log.append
        self.channel: Channel = ZmqTransport(high_water).connect(
            f"ipc://{path}", lambda message: self.on_message(message), lambda: self.log.append(b"LOST")
        )

    async def accept(self) -> None:
        """Take a connection in."""
        self.sock, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self._listening), 5.0)
        self._sockets.append(self.sock)

    async def open(self) -> None:
        """Take a connection in and shake hands."""
        await self.accept()
        await self.write(OPENING)
        assert await self.read(len(GREETING + READY)) == GREETING + READY

    async def write(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.sock, data), 10.0)

    async def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, min(size - len(data), 1 << 20)), 10.0)
            assert more, f"the channel hung up after {len(data)} bytes"
            data += more
        return bytes(data)

    async def lost(self) -> None:
        await until(lambda: b"LOST" in self.log, 1.0)
        with pytest.raises(ChannelClosed):
            self.channel.send(b"x")

    def close(self) -> None:
        self.channel.abort()
        for sock in self._sockets:
            sock.close()


@pytest.fixture
async def peer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RawPeer]:
    peer = RawPeer(tmp_path_factory.mktemp("z") / "x.sock")
    yield peer
    peer.close()


async def test_a_conversation(peer: RawPeer) -> None:
    peer.channel.send(b"early")
    await peer.open()
    assert await peer.read(7) == message_frame(b"early")
    await peer.write(message_frame(b"one"))
    await until(lambda: peer.log == [b"one"])
    peer.channel.send(b"late")
    assert await peer.read(6) == message_frame(b"late")


async def test_nothing_is_sent_before_the_handshake(peer: RawPeer) -> None:
    peer.channel.send(b"secret")
    await peer.accept()
    await peer.write(GREETING)
    assert await peer.read(len(GREETING + READY)) == GREETING + READY
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer.sock, 1), 0.05)
    await peer.write(ROUTER_READY)
    assert await peer.read(8) == message_frame(b"secret")


async def test_messages_that_come_with_the_handshake(peer: RawPeer) -> None:
    await peer.accept()
    await peer.write(OPENING + message_frame(b"a") + message_frame(b"b" * 300)[:100])
    await peer.write(message_frame(b"b" * 300)[100:])
    await until(lambda: peer.log == [b"a", b"b" * 300])


async def test_bytes_that_trickle_in(peer: RawPeer) -> None:
    await peer.accept()
    for byte in OPENING + message_frame(b"one") + message_frame(b"two" * 100):
        await peer.write(bytes((byte,)))
        await asyncio.sleep(0)
    await until(lambda: peer.log == [b"one", b"two" * 100])


async def test_only_the_last_part_is_handed_over(peer: RawPeer) -> None:
    await peer.open()
    await peer.write(b"\1\1a" + b"\1\1b" + b"\0\1c")
    await until(lambda: peer.log == [b"c"])


async def test_a_ping_is_answered(peer: RawPeer) -> None:
    await peer.open()
    await peer.write(command_frame(b"PING", b"\0\x0aabc") + command_frame(b"SOMETHING") + message_frame(b"x"))
    assert await peer.read(10) == b"\x04\x08\x04PONGabc"
    await until(lambda: peer.log == [b"x"])


@pytest.mark.parametrize(
    "opening",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        GREETING[:10] + b"\x01",
        GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32),
        GREETING + command_frame(b"READY", b"\x0bSocket-Type\0\0\0\x03PUB"),
        GREETING + command_frame(b"ERROR", b"\x02no"),
        GREETING + message_frame(b"hello"),
    ],
)
async def test_who_is_no_peer_is_lost_at_once(peer: RawPeer, opening: bytes) -> None:
    peer.channel.send(b"secret")
    await peer.accept()
    await peer.write(opening)
    await peer.lost()
    assert peer.log == [b"LOST"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff",
        bytes((LONG,)) + (MAX_MESSAGE + 1).to_bytes(8, "big"),
        command_frame(b"ERROR", b"\x02no"),
        command_frame(b"PING"),
        b"\x04\0",
    ],
)
async def test_garbage_is_a_loss_after_what_came_before(peer: RawPeer, garbage: bytes) -> None:
    await peer.open()
    await peer.write(message_frame(b"good") + garbage + message_frame(b"bad"))
    await peer.lost()
    assert peer.log == [b"good", b"LOST"]


async def test_half_a_message_is_none(peer: RawPeer) -> None:
    await peer.open()
    await peer.write(message_frame(b"good") + message_frame(b"half")[:4])
    peer.sock.close()
    await peer.lost()
    assert peer.log == [b"good", b"LOST"]


async def test_what_came_before_the_end_is_handed_over_though_a_send_finds_the_end_first(peer: RawPeer) -> None:
    await peer.open()
    await peer.write(b"".join(message_frame(b"%d" % i) for i in range(300)))
    peer.sock.close()
    with pytest.raises(ChannelClosed):
        peer.channel.send(b"too late")
    await peer.lost()
    assert peer.log == [b"%d" % i for i in range(300)] + [b"LOST"]


async def test_a_peer_that_ends_without_reading_is_a_loss_after_what_came_before(peer: RawPeer) -> None:
    """Such a connection is reset, and uvloop calls a reader only once more then, however much there is to read."""
    await peer.open()
    peer.channel.send(b"never read")
    messages = [b"%d" % i * 1000 for i in range(40)]
    peer.sock.sendall(b"".join(map(message_frame, messages)))
    peer.sock.close()  # before the loop reads
    await peer.lost()
    assert peer.log == [*messages, b"LOST"]


async def test_another_try_when_it_goes_before_the_handshake(peer: RawPeer) -> None:
    peer.channel.send(b"early")
    for part in (b"", GREETING, OPENING[:-1]):
        await peer.accept()
        await peer.write(part)
        peer.sock.close()
    await peer.open()
    assert await peer.read(7) == message_frame(b"early")
    assert peer.log == []


async def test_a_silent_peer_is_lost_in_time(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmtp, "CONNECT_TIMEOUT", 0.1)
    peer = RawPeer(tmp_path_factory.mktemp("z") / "x.sock")
    try:
        await peer.accept()
        await peer.write(OPENING[:-1])
        await peer.lost()
    finally:
        peer.close()


async def test_the_largest_message_both_ways(peer: RawPeer) -> None:
    await peer.open()
    message = bytes(MAX_MESSAGE)
    await peer.write(message_frame(message))
    await until(lambda: peer.log == [message])
    peer.channel.send(message)
    with pytest.raises(ChannelFull):
        peer.channel.send(bytes(1024 * 1024))
    received = await peer.read(MAX_MESSAGE + 9)
    assert received == message_frame(message)
    peer.channel.send(b"again")
    assert await peer.read(7) == message_frame(b"again")


async def test_waiting_messages_are_bounded_by_number(tmp_path_factory: pytest.TempPathFactory) -> None:
    peer = RawPeer(tmp_path_factory.mktemp("z") / "x.sock", high_water=3)
    try:
        for i in range(3):
            peer.channel.send(b"%d" % i)
        with pytest.raises(ChannelFull, match="isn't connected yet"):
            peer.channel.send(b"3")
        await peer.open()
        assert await peer.read(9) == b"".join(message_frame(b"%d" % i) for i in range(3))
        sent = fill(peer.channel, b"x" * 1000)
        received = await peer.read(sent * 1009)
        assert received == message_frame(b"x" * 1000) * sent
    finally:
        peer.close()


def fill(channel: Channel, message: bytes) -> int:
    """Send until no more is taken; how many were."""
    for sent in range(100_000):
        try:
            channel.send(message)
        except ChannelFull:
            return sent
    raise AssertionError("it takes any number of messages")


async def test_small_messages_behind_large_ones_are_bounded_by_number_only(peer: RawPeer) -> None:
    """Else a burst of large requests would keep pings from a replica that is well."""
    await peer.open()
    large, small = b"x" * 1_000_000, b"y" * 4000
    first = fill(peer.channel, large)
    second = fill(peer.channel, small)
    assert 500 < second < 1000
    with pytest.raises(ChannelFull):
        peer.channel.send(large)
    assert await peer.read(first * 1_000_009) == message_frame(large) * first
    assert await peer.read(second * 4009) == message_frame(small) * second


async def test_pings_of_who_does_not_read_take_no_memory(peer: RawPeer) -> None:
    await peer.open()
    fill(peer.channel, b"x" * 100_000)
    await peer.write(command_frame(b"PING", b"\0\0") * 5000 + message_frame(b"done"))
    await until(lambda: peer.log == [b"done"])
    with pytest.raises(ChannelFull):
        peer.channel.send(b"x" * 100_000)


async def test_close_sends_what_waits_and_says_nothing_of_a_loss(peer: RawPeer) -> None:
    await peer.open()
    sent = fill(peer.channel, b"x" * 100_000)
    closing = asyncio.create_task(peer.channel.close(10.0))
    await asyncio.sleep(0)
    with pytest.raises(ChannelClosed):
        peer.channel.send(b"x")
    await peer.write(message_frame(b"nobody listens"))
    assert await peer.read(sent * 100_009) == message_frame(b"x" * 100_000) * sent
    await closing
    assert await asyncio.get_running_loop().sock_recv(peer.sock, 1) == b""
    assert peer.log == []


async def test_close_gives_up_in_time(peer: RawPeer) -> None:
    await peer.open()
    fill(peer.channel, b"x" * 100_000)
    await asyncio.wait_for(peer.channel.close(0.05), 2.0)
    assert peer.log == []


async def test_close_ends_early_when_the_peer_goes(peer: RawPeer) -> None:
    await peer.open()
    fill(peer.channel, b"x" * 100_000)
    closing = asyncio.create_task(peer.channel.close(60.0))
    await asyncio.sleep(0)
    peer.sock.close()
    await asyncio.wait_for(closing, 2.0)
    assert peer.log == []


async def test_a_mistake_of_the_receiver_keeps_nothing_from_it(peer: RawPeer) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    got: list[bytes] = []

    def take(message: bytes) -> None:
        got.append(message)
        raise ValueError(message)

    peer.on_message = take
    await peer.open()
    await peer.write(message_frame(b"a"))
    await until(lambda: got == [b"a"])
    await peer.write(message_frame(b"b") + message_frame(b"c"))
    await until(lambda: got == [b"a", b"b", b"c"])
    assert [type(error) for error in errors] == [ValueError] * 3
    peer.channel.send(b"still there")
    assert await peer.read(13) == message_frame(b"still there")


@pytest.mark.parametrize("endpoint", ["ipc://", "ipc://a\0b"])
async def test_endpoints_that_name_no_file(endpoint: str) -> None:
    with pytest.raises(TransportError, match="can't dial"):
        ZmqTransport().connect(endpoint, lambda message: None, lambda: None)
