"""The links of 1,000 workers over TCP with keys: what they cost the supervisor's process, all of its threads, ZeroMQ's too.

The supervisor is the real one, in a process of its own. Its allow-list names the workers, each with a key of its own; all of them dial
from one other process (`python -m benchmarks.tcp_links`), which is not counted. They register with devices and replicas as real workers do.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks import simulated
from benchmarks.processes import Child, NotReady, cpu_seconds
from benchmarks.results import Row, at_most
from xi_core import __version__
from xi_core.cluster import messages as m
from xi_core.cluster.control_process import allow_many_files
from xi_core.cluster.store import Store
from xi_core.engine.info import Support
from xi_core.errors import ConfigError
from xi_core.transport.base import Channel
from xi_core.transport.rpc import BEAT, Link, dial
from xi_core.transport.security import ClientSecurity, KeyPair
from xi_core.transport.vocabulary import Vocabulary
from xi_core.wire import PROTOCOL
from xi_plugins.transports.zmq import ZmqChannel, ZmqTransport

VOCABULARY = Vocabulary(m.ANSWERS, m.NOTICES)
FILES_OF_LINK, OTHER_FILES = 5, 200
"""Descriptors that a dialled link takes at most, and what a process has besides. On the supervisor's side a link takes one."""
AT_ONCE = 25
"""Workers that join at the same time."""
SETTLE = 5.0
"""Seconds after the last join, in which the supervisor writes down what it has learned."""
JOINING = 120.0
"""Seconds in which all must have joined."""
TELLING = 1.0
"""Seconds between two words of a worker on its devices."""
SLICE = 0.02
PACE = 0.9
"""Part of what the workers should say that they must have said, or else the figure is too good."""


class Task(msgspec.Struct):
    """What the dialling process is told first."""

    endpoint: str
    server: str
    keys: list[KeyPair]


class Counts(msgspec.Struct):
    """What has been said on all links so far."""

    sent: int = 0
    received: int = 0
    lost: int = 0


class Measured(msgspec.Struct):
    """A stretch of time: the share of a core that the supervisor took, and the messages per second that it got and sent."""

    share: float
    got: float
    said: float


def allow_files(count: int) -> None:
    """Let this process, and those that it starts, have so many files open. Raises `ConfigError` where the system doesn't."""
    import resource  # Windows has none

    allow_many_files()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < count:
        raise ConfigError(f"a process must have {count} files open, and the limit is {limit}; raise it (`ulimit -Hn {count}` as root)")


def files_for(links: int) -> int:
    """How many files the dialling process has open, which has more than the supervisor."""
    return links * FILES_OF_LINK + OTHER_FILES


def rows(links: int, seconds: float) -> tuple[list[Row], dict[str, object]]:
    """Measure for `seconds` with beats alone, and again while each worker tells of its devices. Also what was measured, in words."""
    quiet, telling = measure(links, seconds)
    what = f"the supervisor's process, beats of {links} workers over TCP with keys"
    found = [
        at_most(what, "% of a core", quiet.share * 100, 30.0),
        at_most(f"{what}, each telling of its devices each second", "% of a core", telling.share * 100, 30.0),
    ]
    conditions = {
        "counted": "all threads of the supervisor's process; the workers' side is another process",
        "seconds": seconds,
        "messages to and from it per second": [round(n) for n in (quiet.got, quiet.said)],
        "the same with devices": [round(n) for n in (telling.got, telling.said)],
    }
    return found, {"over TCP": conditions}


def measure(links: int, seconds: float, settle: float = SETTLE) -> tuple[Measured, Measured]:
    """Beats alone; and with words on devices. Raises `ConfigError`, `NotReady`."""
    allow_files(files_for(links))
    with tempfile.TemporaryDirectory(prefix="xi-links-") as folder:
        keys, server = _members(Path(folder), links)
        supervisor = [sys.executable, "-m", "xi_core.cluster.supervisor", "--endpoint", f"ipc://{folder}/s", "--watch-stdin"]
        cluster = ["--cluster-host", "127.0.0.1", "--cluster-port", "0", "--settle", "0"]
        with (
            Child([*supervisor, *cluster], {"XI_HOME": folder}) as measured,
            Child([sys.executable, "-m", "benchmarks.tcp_links"]) as dialling,
        ):
            endpoint = json.loads(measured.line())["cluster_endpoint"]
            dialling.tell(msgspec.json.encode(Task(endpoint, server, keys)).decode())
            if dialling.line(JOINING).strip() != "joined":
                raise NotReady(f"workers could not join\n{dialling.output()}\n{measured.output()}")
            time.sleep(settle)
            quiet = _stretch(measured, dialling, seconds, links / BEAT)
            dialling.tell("devices")
            time.sleep(TELLING)
            return quiet, _stretch(measured, dialling, seconds, links / BEAT + links / TELLING)


def _members(home: Path, links: int) -> tuple[list[KeyPair], str]:
    """Put so many workers on the list that a supervisor of this home will have. Their keys, and its public one."""
    store = Store(home)
    try:
        keys = [KeyPair.new() for _ in range(links)]
        for number, pair in enumerate(keys):
            secret = secrets.token_bytes(32)
            store.add_token(secret, "worker", time.time() + JOINING)
            store.redeem(secret, "worker", simulated.name_of(number), pair.public)
        return keys, store.keys("supervisor").public
    finally:
        store.close()


def _stretch(measured: Child, dialling: Child, seconds: float, pace: float) -> Measured:
    """`pace`: messages per second that the workers should send."""
    before, began, used = _counts(dialling), time.monotonic(), cpu_seconds(measured.pid)
    time.sleep(seconds)
    used, took, after = cpu_seconds(measured.pid) - used, time.monotonic() - began, _counts(dialling)
    found = Measured(used / took, (after.sent - before.sent) / took, (after.received - before.received) / took)
    if after.lost or found.got < PACE * pace:
        raise NotReady(
            f"{after.lost} links were lost, and the workers said {found.got:.0f} messages a second instead of {pace:.0f}: "
            f"this machine is too busy to measure\n{dialling.output()}"
        )
    if " ERROR " in measured.output():
        raise NotReady(f"the supervisor did not take what the workers said\n{measured.output()}")
    return found


def _counts(dialling: Child) -> Counts:
    dialling.tell("count")
    return msgspec.json.decode(dialling.line(), type=Counts)


# ---- the workers' process --------------------------------------------------------------------------


class Workers:
    """All of them, on one event loop."""

    def __init__(self, task: Task) -> None:
        self.counts = counts = Counts()
        self._task = task
        self._links: dict[int, Link] = {}

        class Counted(ZmqChannel):
            def send(self, message: bytes) -> None:
                counts.sent += 1
                super().send(message)

        class Counting(ZmqTransport):
            def connect(
                self,
                endpoint: str,
                on_message: Callable[[bytes], None],
                on_lost: Callable[[], None],
                security: ClientSecurity | None = None,
            ) -> Channel:
                def receive(message: bytes) -> None:
                    counts.received += 1
                    on_message(message)

                return Counted(endpoint, receive, on_lost, self._high_water, security)

        self._transport = Counting()

    async def join(self) -> None:
        """Raises the supervisor's error, or a `TransportError`."""
        numbers = range(len(self._task.keys))
        for first in numbers[::AT_ONCE]:
            await asyncio.gather(*(self._join(number) for number in numbers[first : first + AT_ONCE]))

    async def tell(self) -> None:
        """Have each worker tell of its devices each second, one after the other; until cancelled."""
        began, told, count = time.monotonic(), 0, len(self._links)
        while True:
            due = int((time.monotonic() - began) / TELLING * count)
            for number in range(told, due):
                turn, worker = divmod(number, count)
                devices = simulated.devices_of((40 + turn % 2) * simulated.GIB)
                self._links[worker].notify(m.WorkerBeat(worker=simulated.name_of(worker), devices=devices))
            told = due
            await asyncio.sleep(SLICE)

    async def _join(self, number: int) -> None:
        security = ClientSecurity(self._task.keys[number], self._task.server)
        link = dial(self._transport, self._task.endpoint, VOCABULARY, {}, self._lose, security)
        await link.call(_introduction(number))
        self._links[number] = link

    def _lose(self) -> None:
        self.counts.lost += 1


def _introduction(number: int) -> m.Register:
    """A worker with one launch of its own, so that none waits for another worker's replicas."""
    worker, devices, spec = simulated.name_of(number), simulated.devices_of(), simulated.spec_of(f"m{number}", simulated.REPLICAS)
    return m.Register(
        worker=worker,
        incarnation=f"i{number}",
        pid=os.getpid(),
        keeper_pid=os.getpid(),
        version=__version__,
        protocol=PROTOCOL,
        devices=devices,
        engines={simulated.ENGINE: Support(ok=True)},
        replicas=[
            simulated.ready(spec, f"m{number}-{n}", f"life-{number}-{n}", worker, [devices[n].id]) for n in range(simulated.REPLICAS)
        ],
        address="127.0.0.1",
    )


async def _work() -> None:
    line = await asyncio.to_thread(sys.stdin.readline)
    workers = Workers(msgspec.json.decode(line, type=Task))
    await workers.join()
    print("joined", flush=True)
    telling: asyncio.Task[None] | None = None
    while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if word == "devices":
            telling = asyncio.ensure_future(workers.tell())
        else:
            print(msgspec.json.encode(workers.counts).decode(), flush=True)
    if telling is not None:
        telling.cancel()


if __name__ == "__main__":
    asyncio.run(_work())
