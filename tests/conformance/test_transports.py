"""Messages over every built-in transport, as `xi_core.transport.base` promises: whole, in order, each to its own, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from transport_wire import MiB, Wire

from xi_core.errors import ChannelClosed, ChannelFull, TransportError
from xi_core.testing.waiting import until
from xi_core.transport.base import Channel


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
