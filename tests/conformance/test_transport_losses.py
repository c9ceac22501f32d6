"""How a connection of each built-in transport ends: losses, closing and aborting, and what still arrives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from transport_wire import Dialled, Wire

from xi_core.errors import ChannelClosed, TransportError
from xi_core.testing.waiting import until
from xi_core.transport.base import Listener


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


def refused(send: Callable[[bytes], None]) -> bool:
    """Whether what is sent is refused at last. The loop stands still meanwhile, so that nothing is told of the loss or read."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            send(b"too late")
        except ChannelClosed:
            return True
        time.sleep(0.01)
    return False


async def test_what_is_sent_after_the_end_is_refused_and_the_last_message_comes_before_the_loss(wire: Wire) -> None:
    listener = wire.listen()
    log: list[bytes] = []
    channel = wire.dial(log.append, lambda: log.append(b"lost"))
    channel.send(b"hello")
    await until(lambda: wire.received)
    listener.send(wire.received[0][0], b"last")
    await listener.close()
    assert refused(channel.send)
    await until(lambda: b"lost" in log, 2.0)
    assert log == [b"last", b"lost"]


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


def _is_gone_later(listener: Listener, peer: bytes) -> bool:
    """The same after a moment in which the loop stands still, and what was sent arrives."""
    time.sleep(0.1)
    return _is_gone(listener, peer)


async def test_what_comes_while_a_send_fails_is_read(wire: Wire) -> None:
    """The failed send may have taken the socket's only word that there is something to read."""
    listener = wire.listen()
    gone, other = await wire.connected(), await wire.connected()
    gone.channel.abort()
    await until(lambda: _is_gone(listener, gone.peer))
    other.channel.send(b"x")
    assert _is_gone_later(listener, gone.peer)
    await until(lambda: wire.received == [(other.peer, b"x")], 1.0)


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
