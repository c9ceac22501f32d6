"""A gateway's link to a real replica whose engine holds all of Python for seconds, and to one that is stopped."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xi_core.cluster.messages import ReplicaRoute
from xi_core.testing.harness import plan_for
from xi_core.testing.waiting import until
from xi_core.transport.security import KeyPair
from xi_core.wire.plan import ReplicaSecurity, ServingLimits
from xi_plugins.transports.zmq import ZmqTransport
from xi_server.limits import Backlog, SlowClient
from xi_server.replica_link import LOST_PINGS, MISSED_PINGS, PING_INTERVAL, ReplicaLink, Stream

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stops a process")

HELD = 2.5
"""Seconds for which a step holds Python: three times as long as a gateway waits for a process that is stopped."""
ENGINE = f"""
import ctypes
from xi_core.testing.fakes import CountingEngine

class Holding(CountingEngine):
    def step(self):
        output = super().step()
        if output.tokens and self._stats.steps % 20 == 0:  # not that of the probe at its start
            ctypes.PyDLL(None).usleep({int(HELD * 1e6)})  # a library's call that never lets go of Python's lock
        return output
"""


class Busy:
    """A replica's process, and the link of a gateway that pings it."""

    def __init__(self, folder: Path, secure: bool) -> None:
        self._own, self._gateways = KeyPair.new(), KeyPair.new()
        plan = plan_for("holding_engine:Holding", "nowhere", "fake")
        plan.endpoint = "tcp://127.0.0.1:0" if secure else f"ipc://{folder}/r.sock"
        plan.limits = ServingLimits(grace=1.0)
        if secure:
            plan.security = ReplicaSecurity(gateways=self._gateways.public, public=self._own.public, secret=self._own.secret)
        (folder / "holding_engine.py").write_text(ENGINE)
        self._plan = plan
        read, write = os.pipe()
        self._reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "xi_core.replica", "--report-fd", str(write)],
            stdin=subprocess.PIPE,
            pass_fds=(write,),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
        )
        os.close(write)
        assert self.child.stdin is not None
        data = msgspec.msgpack.encode(plan)
        self.child.stdin.write(struct.pack(">I", len(data)) + data)
        self.child.stdin.flush()
        self._reading = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._reading.start()
        self.losses = 0

    def _read(self, fd: int) -> None:
        with open(fd, "rb") as lines:
            for line in lines:
                self._reports.put(msgspec.json.decode(line))

    async def link(self) -> ReplicaLink:
        """A link that pings it, once it is ready and has answered."""

        def ready() -> dict[str, Any]:
            while True:
                report = self._reports.get(timeout=30)
                if report["type"] == "ready":
                    return report

        report = await asyncio.get_running_loop().run_in_executor(None, ready)
        plan = self._plan
        route = ReplicaRoute(
            replica_id=plan.replica_id,
            incarnation=plan.incarnation,
            endpoint=report["endpoint"],
            transport=plan.transport,
            slots=report["slots"],
            key=self._own.public if plan.security is not None else "",
        )
        self.made = ReplicaLink(route, ZmqTransport(), lambda: None, self._lose, lambda public: self._gateways)
        self._ticking = asyncio.create_task(self._tick())
        channel = self.made._channel
        assert channel is not None
        await until(lambda: self.made.load.steps > 0 and channel.missed_beats() <= 1, 10.0)
        return self.made

    async def _tick(self) -> None:
        while True:
            self.made.tick(on_time=True)
            await asyncio.sleep(PING_INTERVAL)

    def _lose(self) -> None:
        self.losses += 1

    async def close(self) -> None:
        self._ticking.cancel()
        self.made.close()
        self.child.kill()
        self.child.wait(10)
        assert self.child.stdin is not None
        self.child.stdin.close()
        self._reading.join(10)


@pytest.fixture(params=[False, True], ids=["local", "tcp-curve"])
async def busy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Busy]:
    made = Busy(tmp_path_factory.mktemp("b"), request.param)
    try:
        yield made
    finally:
        await made.close()


def ask(link: ReplicaLink, tokens: int) -> Stream:
    stream = Stream(asyncio.get_running_loop(), SlowClient(Backlog(), lambda why: None))
    body = {"model": "x", "prompt": "Hi", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    link.submit(stream, "/v1/completions", msgspec.json.encode(body))
    return stream


async def test_a_replica_that_is_busy_for_seconds_keeps_its_requests(busy: Busy) -> None:
    link = await busy.link()
    stream = ask(link, 40)
    await until(lambda: link.late, 10.0)
    assert link.alive, "nothing new goes there while another answers, but it is not lost"
    await until(lambda: stream.over, 4 * HELD + 10.0)
    assert (stream.error, stream.tokens, busy.losses) == (None, 40, 0)
    await until(lambda: link.usable, 5.0)


async def test_a_replica_that_is_stopped_gets_nothing_after_three_heartbeats_and_is_lost_after_twelve(busy: Busy) -> None:
    link = await busy.link()
    stream = ask(link, 10_000)
    await until(lambda: stream.tokens > 0)
    loop = asyncio.get_running_loop()
    os.kill(busy.child.pid, signal.SIGSTOP)
    stopped = loop.time()
    await until(lambda: not link.alive, 5.0)
    assert loop.time() - stopped < (MISSED_PINGS + 2) * PING_INTERVAL
    assert not stream.over, "it may go on"
    await until(lambda: stream.over, 10.0)
    assert loop.time() - stopped > (LOST_PINGS - 1) * PING_INTERVAL
    assert stream.error is not None
    assert (stream.error.code, link.fell_silent, busy.losses) == ("replica_lost", True, 1)
    os.kill(busy.child.pid, signal.SIGCONT)
    await until(lambda: link.usable, 15.0)


async def test_a_replica_that_stood_still_for_a_second_goes_on_with_its_requests(busy: Busy) -> None:
    link = await busy.link()
    stream = ask(link, 10)
    await until(lambda: stream.tokens > 0)
    os.kill(busy.child.pid, signal.SIGSTOP)
    await until(lambda: not link.alive, 5.0)
    os.kill(busy.child.pid, signal.SIGCONT)
    await until(lambda: stream.over, 10.0)
    assert (stream.error, stream.tokens) == (None, 10)
    await until(lambda: link.usable, 5.0)
