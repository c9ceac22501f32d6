"""A worker over a real socket tells the supervisor when its devices change, and placement goes by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from xi_core.cluster import messages as m
from xi_core.cluster.device_watch import DeviceWatch
from xi_core.cluster.devices import Device, DeviceProbe, DeviceProbeInfo
from xi_core.cluster.supervisor import Supervisor
from xi_core.cluster.worker import Worker
from xi_core.config import Settings
from xi_core.hookspecs import hookimpl
from xi_core.plugins import PluginHub
from xi_core.testing.waiting import until

GIB = 2**30


class Changing(DeviceProbe):
    """One device, of which the test says how much is free."""

    free = 80 * GIB
    looks = 0

    def devices(self) -> list[Device]:
        type(self).looks += 1
        return [Device(id="toy:0", kind="toy", memory=80 * GIB, memory_free=self.free)]


class Plugin:
    """The probe above, alone."""

    @hookimpl
    def xi_devices(self) -> list[DeviceProbeInfo]:
        return [DeviceProbeInfo(name="toy", probe=f"{Changing.__module__}:Changing")]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Changing]]:
    monkeypatch.setattr("xi_core.cluster.host.import_path", lambda path: Changing)
    monkeypatch.setattr("xi_core.cluster.worker.DeviceWatch", partial(DeviceWatch, interval=0.02))
    yield Changing
    Changing.free, Changing.looks = 80 * GIB, 0


async def test_the_supervisor_hears_of_changes(probe: type[Changing], tmp_path: Path) -> None:
    hub = PluginHub.load("transports,schedulers,routers")
    hub.register(Plugin(), "toy")
    supervisor = Supervisor(hub, Settings(home=str(tmp_path)), f"ipc://{tmp_path}/s.sock", settle=0.0)
    worker = Worker(hub, Settings(home=str(tmp_path)), name="w", runtime=tmp_path, supervisor=supervisor.endpoint)
    stop = asyncio.Event()
    serving = asyncio.ensure_future(worker.serve(stop))
    beats: list[m.WorkerBeat] = []
    lifecycle = supervisor._lifecycle
    heard = lifecycle.worker_beat

    def note(now: float, name: str, devices: list[Device]) -> list[object]:
        beats.append(m.WorkerBeat(worker=name, devices=devices))
        return heard(now, name, devices)  # type: ignore[return-value]

    lifecycle.worker_beat = note  # type: ignore[method-assign,assignment]
    try:
        await asyncio.wait_for(worker.registered.wait(), 10)
        looked = probe.looks
        await until(lambda: probe.looks > looked + 3, 10)
        assert beats == []
        probe.free = 20 * GIB
        await until(lambda: lifecycle.members["w"].devices[0].memory_free == 20 * GIB, 10)
        looked = probe.looks
        await until(lambda: probe.looks > looked + 3, 10)
        assert [beat.worker for beat in beats] == ["w"]
    finally:
        stop.set()
        await serving
        await supervisor.close()
