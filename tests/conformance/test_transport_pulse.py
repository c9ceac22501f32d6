"""Whether a channel tells a process that is busy from one that is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from xi_core.testing.waiting import until
from xi_core.transport.base import NO_PULSE, Channel
from xi_core.transport.security import ClientSecurity, KeyPair
from xi_plugins.transports.inproc import InprocTransport
from xi_plugins.transports.zmq import ZmqTransport

BEAT = 0.25
LOST = 3
"""Beats in a row after which a gateway gives a replica up."""
HELD_MS = 2500
"""Milliseconds for which a child is busy: many beats."""

LISTEN = """
import asyncio, ctypes, sys, time
from xi_core.transport.security import KeyPair, ServerSecurity
from xi_plugins.transports.zmq import ZmqTransport
endpoint, milliseconds, public, secret = sys.argv[1:]

def take(peer, message):
    listener.send(peer, message)
    if message == b"hold":
        ctypes.PyDLL(None).usleep(1000 * int(milliseconds))  # a call of a library that never lets go of Python's lock
    elif message == b"sleep":
        time.sleep(int(milliseconds) / 1000)  # the event loop's own thread is busy
    else:
        return
    listener.send(peer, b"done")

async def main():
    global listener
    security = ServerSecurity(KeyPair(public, secret), lambda key: "anybody") if public else None
    listener = ZmqTransport().listen(endpoint, take, security)
    print(listener.endpoint, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


class Child:
    """A process that listens, with one channel that dials it."""

    def __init__(self, endpoint: str, secure: bool) -> None:
        keys = KeyPair.new() if secure else None
        words = [endpoint, str(HELD_MS), keys.public if keys else "", keys.secret if keys else ""]
        self.process = subprocess.Popen([sys.executable, "-c", LISTEN, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._security = ClientSecurity(KeyPair.new(), keys.public) if keys else None
        self.heard: list[bytes] = []
        self.lost = 0
        self._channels: list[Channel] = []

    async def dial(self) -> Channel:
        assert self.process.stdout is not None
        endpoint = self.process.stdout.readline().strip()
        channel = ZmqTransport().connect(endpoint, self.heard.append, self._lose, self._security)
        self._channels.append(channel)
        channel.send(b"echo")
        await until(lambda: self.heard == [b"echo"])
        channel.missed_beats()
        await beats_until(lambda: channel.missed_beats() == 0, 8)
        return channel

    def close(self) -> None:
        for channel in self._channels:
            channel.abort()
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _lose(self) -> None:
        self.lost += 1


async def beats_until(true: Callable[[], bool], most: int) -> None:
    """Look once in a beat, which is what a beat is for."""
    for _ in range(most):
        if true():
            return
        await asyncio.sleep(BEAT)
    raise AssertionError(f"not within {most} beats")


@pytest.fixture(params=["zmq-ipc", "zmq-tcp", "zmq-tcp-curve"])
def child(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    endpoint = f"ipc://{tmp_path_factory.mktemp('p')}/x.sock" if request.param == "zmq-ipc" else "tcp://127.0.0.1:0"
    made = Child(endpoint, "curve" in request.param)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [b"hold", b"sleep"])
async def test_a_busy_process_keeps_its_pulse(child: Child, kind: bytes) -> None:
    channel = await child.dial()
    channel.send(kind)
    seen: list[int] = []

    def done() -> bool:
        seen.append(channel.missed_beats())
        return b"done" in child.heard

    await beats_until(done, 40)
    assert len(seen) >= HELD_MS / 1000 / BEAT - 1, "it was busy for all that time"
    assert max(seen) < LOST, seen
    assert child.lost == 0


async def test_a_stopped_process_has_none_and_has_one_again(child: Child) -> None:
    channel = await child.dial()
    os.kill(child.process.pid, signal.SIGSTOP)
    await beats_until(lambda: channel.missed_beats() >= LOST, LOST + 2)
    assert child.lost == 0, "whether it counts as lost is for others to judge"
    os.kill(child.process.pid, signal.SIGCONT)
    await beats_until(lambda: channel.missed_beats() == 0, 12)
    channel.send(b"again")
    await until(lambda: b"again" in child.heard)


async def test_a_killed_process_has_none(child: Child) -> None:
    channel = await child.dial()
    child.process.kill()
    await until(lambda: child.lost, 1.0)
    assert (child.lost, channel.missed_beats()) == (1, NO_PULSE)


async def test_a_channel_within_the_process_can_ask_for_none(tmp_path: Path) -> None:
    listener = InprocTransport().listen(f"inproc://{tmp_path.name}", lambda peer, message: None)
    channel = InprocTransport().connect(f"inproc://{tmp_path.name}", lambda message: None, lambda: None)
    assert channel.missed_beats() == NO_PULSE
    channel.abort()
    listener.abort()
