"""A replica on its worker: before it has a process, and after it."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from xi_core.api.control import LaunchSpec
from xi_core.cluster import running, worker
from xi_core.cluster.device_watch import DeviceWatch
from xi_core.cluster.devices import Device
from xi_core.cluster.guard import Guard
from xi_core.cluster.messages import Prepare, ReplicaGone, StartReplica, StopReplica, WorkerBeat
from xi_core.cluster.running import RunningReplica
from xi_core.cluster.worker import Worker
from xi_core.config import Settings
from xi_core.errors import Conflict, LaunchCancelled, Unavailable
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.source import Progress
from xi_core.plugins import PluginHub
from xi_core.testing.harness import plan_for
from xi_core.testing.waiting import until
from xi_core.wire.plan import RankAddress, Rendezvous


async def test_a_stopped_replica_is_gone_only_when_what_fetches_for_it_has_ended(tmp_path: Path) -> None:
    """Else a worker that is told to stop ends before the thread has ended uv, which would go on alone."""
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    start = StartReplica(spec=LaunchSpec(model_name="toy"), model=model, plan=plan_for("x:X", "", "fake"), created=1, deadline=10.0)
    began, ended = threading.Event(), threading.Event()

    def build(start: StartReplica, progress: Progress) -> Path | None:
        began.set()
        try:
            while True:
                progress("environment: working", None)
                time.sleep(0.1)
        finally:
            time.sleep(0.1)
            ended.set()

    guard = Guard()
    try:
        replica = RunningReplica(
            start, worker="w1", home=tmp_path, fetch=lambda ref, progress: tmp_path, build=build, guard=guard, on_change=lambda one: None
        )
        running = asyncio.ensure_future(replica.run())
        assert await asyncio.to_thread(began.wait, 5)
        replica.stop(0.0)
        await asyncio.wait_for(running, 5)
        assert ended.is_set()
        assert replica.error is None
    finally:
        guard.close()


FAILS = """
import os, sys
from xi_core.errors import EngineError, LaunchFailed
from xi_core.wire.report import Failed, encode
error = {error}
os.write(int(sys.argv[sys.argv.index("--report-fd") + 1]), encode(Failed(error.body())) + b"\\n")
"""


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Callable[[str], RunningReplica]]:
    """A rank of two, which has begun, and whose process fails with this error; its home is `tmp_path`."""
    guard = Guard()

    def made(error: str) -> RunningReplica:
        script = tmp_path / "fails.py"
        script.write_text(FAILS.format(error=error))
        world = tuple(RankAddress(rank=number, worker=f"w{number}", host="127.0.0.1") for number in range(2))
        plan = replace(plan_for("x:X", "", "fake"), rendezvous=Rendezvous(rank=0, world=world))
        model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
        replica = RunningReplica(
            StartReplica(spec=LaunchSpec(model_name="toy"), model=model, plan=plan, created=1, deadline=10.0),
            worker="w0",
            home=tmp_path,
            fetch=lambda ref, progress: tmp_path,
            guard=guard,
            on_change=lambda one: None,
            command=(sys.executable, str(script)),
            shared=True,
        )
        replica.begin(plan)
        return replica

    yield made
    guard.close()


async def test_a_rank_that_has_failed_waits_for_the_word_of_another_that_died(
    rank: Callable[[str], RunningReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is told is that it lost the other, and not why."""
    monkeypatch.setattr(running, "OTHERS", 60.0)
    replica = rank("EngineError('this rank lost rank 1')")
    life = asyncio.ensure_future(replica.run())
    await until(lambda: replica.record.status.state == "STOPPING", 20.0)
    assert replica.record.status.stage == "ended: this rank lost rank 1"
    assert replica.record.status.pid is None
    replica.stop(0.0)
    await asyncio.wait_for(life, 5)
    assert replica.error is None


async def test_a_rank_that_waits_for_the_others_tells_what_it_has_fetched(tmp_path: Path) -> None:
    """Else its model could be removed from the cache meanwhile."""
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    start = StartReplica(spec=LaunchSpec(model_name="toy"), model=model, plan=plan_for("x:X", "", "fake"), created=1, deadline=10.0)
    guard = Guard()
    try:
        replica = RunningReplica(
            start, worker="w1", home=tmp_path, fetch=lambda ref, progress: tmp_path, guard=guard, on_change=lambda one: None, shared=True
        )
        assert replica.artifact is None
        life = asyncio.ensure_future(replica.run())
        await until(lambda: replica.record.status.stage == "waiting for the other ranks", 5.0)
        assert (replica.artifact, replica.waits) == (tmp_path, True)
        replica.stop(0.0)
        await asyncio.wait_for(life, 5)
    finally:
        guard.close()


async def test_where_no_other_tells_of_its_end_the_rank_s_own_error_is_told(
    rank: Callable[[str], RunningReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "OTHERS", 0.05)
    replica = rank("EngineError('out of memory')")
    await asyncio.wait_for(replica.run(), 20)
    assert (replica.error, replica.final) == ("out of memory", False)


async def test_what_can_t_be_launched_is_told_at_once(rank: Callable[[str], RunningReplica], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "OTHERS", 60.0)
    replica = rank("LaunchFailed('it has no such layer')")
    await asyncio.wait_for(replica.run(), 20)
    assert (replica.error, replica.final) == ("it has no such layer", True)


# ---- on its worker ------------------------------------------------------------------------------

STUBBORN = "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path({!r}).touch(); time.sleep(60)"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Worker]:
    """A worker that has no supervisor. Its replicas don't end before their grace is over."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w").touch()
    config = Settings(home=str(tmp_path / "home"), plugins="")
    made = Worker(
        PluginHub.load(),
        config,
        name="w1",
        runtime=tmp_path,
        supervisor=f"ipc://{tmp_path}/s.sock",
        command=(sys.executable, "-c", STUBBORN.format(str(tmp_path / "deaf"))),
    )
    yield made
    for replica in made._running.values():
        replica.stop(0.0)
    await until(lambda: not made._running, 10.0)
    made._guard.close()


def life(tmp_path: Path, incarnation: str) -> StartReplica:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id=str(tmp_path / "weights")))
    plan = replace(plan_for("x:X", "", "toy"), incarnation=incarnation)
    return StartReplica(spec=LaunchSpec(model_name="toy"), model=model, plan=plan, created=1, deadline=10.0)


async def serve_first(host: Worker, tmp_path: Path) -> RunningReplica:
    await host._start(life(tmp_path, "first"))
    replica = host._running["under-test-0"]
    await until((tmp_path / "deaf").exists, 10.0)
    return replica


async def test_the_next_life_waits_until_the_former_one_that_was_told_to_end_is_gone(host: Worker, tmp_path: Path) -> None:
    first = await serve_first(host, tmp_path)
    await host._stop(StopReplica("under-test-0", 0.5, "first"))
    await asyncio.wait_for(host._start(life(tmp_path, "second")), 10)
    assert first.ended.is_set()
    assert host._running["under-test-0"].plan.incarnation == "second"
    with pytest.raises(Conflict, match="replica under-test-0 runs on worker w1 already"):  # nobody told this one to end
        await host._start(life(tmp_path, "third"))


async def test_a_former_life_that_does_not_end_is_not_waited_for_for_ever(
    host: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve_first(host, tmp_path)
    monkeypatch.setattr(worker, "FORMER", 0.05)
    await host._stop(StopReplica("under-test-0", 60.0, "first"))
    with pytest.raises(Conflict, match="runs on worker w1 already"):
        await host._start(life(tmp_path, "second"))


async def test_what_waited_while_the_supervisor_went_away_is_not_begun(host: Worker, tmp_path: Path) -> None:
    """It will be asked for anew, and a rank that waits for the word of one that is gone would wait for ever."""
    await serve_first(host, tmp_path)
    await host._stop(StopReplica("under-test-0", 0.5, "first"))
    one = life(tmp_path, "second")
    asked = [
        asyncio.ensure_future(host._start(life(tmp_path, "second"))),
        asyncio.ensure_future(
            host._prepare(Prepare(spec=one.spec, model=one.model, plan=one.plan, created=1, rank=0, deadline=10.0)),
        ),
    ]
    await asyncio.sleep(0.1)
    host._drop_waiting()
    for each in asked:
        with pytest.raises(Unavailable, match="the supervisor was away"):
            await asyncio.wait_for(each, 10)
    assert not host._running


async def test_a_worker_that_is_stopping_says_so_whenever_it_registers(host: Worker) -> None:
    assert not host._introduce()[0].leaving
    await host._stop_all()
    assert host._introduce()[0].leaving


async def test_a_replica_ends_wholly_where_there_can_be_no_more_threads(
    host: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await serve_first(host, tmp_path)
    process = replica._process
    assert process is not None

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    replica.stop(0.0)
    await until(lambda: not host._running, 10.0)
    assert process.returncode is not None
    assert replica.record.status.pid is None


@pytest.mark.parametrize("first", [1, 2])
async def test_a_launch_that_is_short_of_threads_later_may_be_tried_again(
    host: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Its log file is well, and so is its home."""
    started, real = itertools.count(), threading.Thread.start

    def some(thread: threading.Thread) -> None:
        if next(started) >= first:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", some)
    await host._start(life(tmp_path, "first"))
    replica = host._running["under-test-0"]
    if first == 1:
        await until(lambda: not host._running, 10.0)
        assert "can't start new thread" in (replica.error or "")
        assert not replica.final
    else:
        await until((tmp_path / "deaf").exists, 10.0)
        replica.stop(0.0)
        await until(lambda: not host._running, 10.0)


async def test_a_replica_for_which_there_is_no_thread_has_ended(host: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    await host._start(life(tmp_path, "first"))
    replica = host._running["under-test-0"]
    await until(lambda: not host._running, 10.0)
    assert "can't start new thread" in (replica.error or "")
    assert not replica.final, "it may be tried again"


async def test_a_rank_that_waits_for_others_is_told_of_until_it_is_told_to_end(host: Worker, tmp_path: Path) -> None:
    """The worker may register again on the same link, where its keeper has died."""
    one = life(tmp_path, "first")
    command = Prepare(spec=one.spec, model=one.model, plan=one.plan, created=1, rank=0, deadline=10.0)
    prepared = asyncio.ensure_future(host._prepare(command))
    await until(lambda: bool(host._running), 10.0)
    assert [record.plan.incarnation for record in host._introduce()[0].replicas] == ["first"]
    host._drop_waiting()
    assert host._introduce()[0].replicas == []
    await asyncio.wait({prepared}, timeout=10)
    assert prepared.done()
    assert prepared.exception() is None or isinstance(prepared.exception(), LaunchCancelled)


# ---- what it frees ------------------------------------------------------------------------------


class Beside:
    """What a worker tells the supervisor of its device and of replicas that are gone; the device is looked at only when that is asked for."""

    def __init__(self, host: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[type] = []
        self.may_look = threading.Event()
        self.may_look.set()
        monkeypatch.setattr(host._link, "notify", self._note)
        monkeypatch.setattr(worker, "LOOK", 60.0)
        host._watch = DeviceWatch([self._device(5)], self._probe, host._beat, interval=60.0)
        self.watching = asyncio.ensure_future(host._watch.run())

    def _note(self, notice: Any, **_: Any) -> bool:
        if isinstance(notice, (WorkerBeat, ReplicaGone)):
            self.told.append(type(notice))
        return True

    def _device(self, free: int) -> Device:
        return Device(id="cuda:0", kind="cuda", memory=80 * 2**30, memory_free=free * 2**30)

    def _probe(self) -> list[Device]:
        assert self.may_look.wait(30)
        return [self._device(80)]


@pytest.fixture
async def beside(host: Worker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Beside]:
    made = Beside(host, monkeypatch)
    yield made
    made.may_look.set()
    made.watching.cancel()
    host._watch.close()


async def serve_on(host: Worker, tmp_path: Path, *devices: str) -> RunningReplica:
    one = life(tmp_path, "first")
    one.plan = replace(one.plan, devices=list(devices))
    await host._start(one)
    await until((tmp_path / "deaf").exists, 10.0)
    return host._running["under-test-0"]


async def test_what_a_stopped_replica_has_freed_is_told_before_it_is_gone(host: Worker, tmp_path: Path, beside: Beside) -> None:
    """Else the next launch is refused for what is free again."""
    (await serve_on(host, tmp_path, "cuda:0")).stop(0.0)
    await until(lambda: ReplicaGone in beside.told, 10.0)
    assert beside.told == [WorkerBeat, ReplicaGone]


async def test_a_crash_is_told_at_once_and_what_it_has_freed_soon(host: Worker, tmp_path: Path, beside: Beside) -> None:
    beside.may_look.clear()
    process = (await serve_on(host, tmp_path, "cuda:0"))._process
    assert process is not None
    process.kill()
    await until(lambda: beside.told == [ReplicaGone], 10.0)
    beside.may_look.set()
    await until(lambda: beside.told == [ReplicaGone, WorkerBeat], 10.0)


@pytest.mark.parametrize("devices", [(), ("fake:0",)])
async def test_a_replica_without_a_device_waits_for_no_look(host: Worker, tmp_path: Path, beside: Beside, devices: tuple[str, ...]) -> None:
    beside.may_look.clear()
    (await serve_on(host, tmp_path, *devices)).stop(0.0)
    await until(lambda: beside.told == [ReplicaGone], 10.0)


async def test_a_worker_that_stops_waits_for_no_look(host: Worker, tmp_path: Path, beside: Beside) -> None:
    beside.may_look.clear()
    replica = await serve_on(host, tmp_path, "cuda:0")
    replica.stop(0.0)
    await asyncio.wait_for(replica.ended.wait(), 10)
    await asyncio.wait_for(host._stop_all(), 10)
    assert beside.told == [ReplicaGone]


async def test_a_look_that_takes_long_keeps_nobody_from_hearing_of_an_end(
    host: Worker, tmp_path: Path, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside.may_look.clear()
    monkeypatch.setattr(worker, "LOOK", 0.05)
    (await serve_on(host, tmp_path, "cuda:0")).stop(0.0)
    await until(lambda: beside.told == [ReplicaGone], 10.0)
