"""Pieces of a replica's life: its reports to the worker, health while it is probed."""

import asyncio
import os
from collections.abc import Iterator

import pytest

from xi_core.errors import EngineError
from xi_core.replica import process
from xi_core.replica.process import Reporter
from xi_core.serving.service import Service
from xi_core.wire import report
from xi_core.wire.frames import Load
from xi_core.wire.manifest import Manifest
from xi_core.wire.report import Health, Ready, Report, Stage


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    os.close(read)
    os.close(write)


def drain(fd: int) -> bytes:
    data = b""
    while True:
        try:
            data += os.read(fd, 65536)
        except BlockingIOError:
            return data


def test_no_report_is_cut_and_no_ready_is_lost_when_the_worker_does_not_read(pipe: tuple[int, int]) -> None:
    read, write = pipe
    reporter = Reporter(write)
    for _ in range(3000):  # more than a pipe holds
        reporter.stage("x" * 100)
    reporter.send(Ready(endpoint="e" * 6000, context_length=1, slots=1, manifest=Manifest()))
    data = drain(read)
    reporter.send(Health(healthy=True, steps=1, running=0, waiting=0))
    data += drain(read)
    reports = [report.decode(line) for line in data.splitlines()]
    assert len([one for one in reports if isinstance(one, Stage)]) < 3000
    assert [one.endpoint for one in reports if isinstance(one, Ready)] == ["e" * 6000]
    assert data.endswith(b"\n")


class Reports(Reporter):
    def __init__(self) -> None:
        self.sent: list[Report] = []

    def send(self, item: Report) -> None:
        self.sent.append(item)


class Probed:
    """A service whose probe hangs until `result` is set."""

    busy = False
    failure = None
    asleep = 0

    def __init__(self) -> None:
        self.probing = asyncio.Event()
        self.result: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def probe(self, timeout: float) -> None:
        self.probing.set()
        await self.result

    def load(self) -> Load:
        return Load()

    def unhealthy(self) -> str | None:
        return None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "IDLE_PROBE_INTERVAL", 0.01)
    monkeypatch.setattr(process, "REPORT_INTERVAL", 0.01)
    monkeypatch.setattr(process, "probe", Probed.probe)


async def until_stopped(service: Probed, reports: Reports, stop: asyncio.Event) -> None:
    assert isinstance(service, Probed)
    as_service: Service = service  # type: ignore[assignment]
    await process._until_stopped(as_service, reports, stop)


async def test_a_probe_that_takes_long_holds_up_neither_reports_nor_a_stop(quick: None) -> None:
    service, reports, stop = Probed(), Reports(), asyncio.Event()
    serving = asyncio.create_task(until_stopped(service, reports, stop))
    async with asyncio.timeout(5):
        await service.probing.wait()
        seen = len(reports.sent)
        while len(reports.sent) < seen + 3:
            await asyncio.sleep(0.005)
        stop.set()
        await serving
    assert service.result.cancelled(), "the probe is given up"


async def test_one_that_sleeps_is_not_probed_nor_blamed_for_a_probe_that_it_slept_through(quick: None) -> None:
    service, reports, stop = Probed(), Reports(), asyncio.Event()
    serving = asyncio.create_task(until_stopped(service, reports, stop))
    async with asyncio.timeout(5):
        await service.probing.wait()
        service.asleep = 1
        service.result.set_exception(EngineError("the engine can't answer"))
        service.probing.clear()
        seen = len(reports.sent)
        while len(reports.sent) < seen + 5:
            await asyncio.sleep(0.005)
        stop.set()
        await serving
    assert not service.probing.is_set()


async def test_an_idle_engine_that_gives_no_token_ends_the_replica(quick: None) -> None:
    service = Probed()
    serving = asyncio.create_task(until_stopped(service, Reports(), asyncio.Event()))
    await asyncio.wait_for(service.probing.wait(), 5)
    service.result.set_exception(EngineError("no token"))
    with pytest.raises(EngineError, match="no token"):
        await asyncio.wait_for(serving, 5)
