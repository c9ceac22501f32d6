"""What a worker tells of its devices while it runs, which devices it offers at all, and what engines see of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import msgspec
import pytest

from xi_core.cluster import device_watch, host
from xi_core.cluster.device_watch import DeviceWatch, noticeable
from xi_core.cluster.devices import Device, DeviceProbe, DeviceProbeInfo, real
from xi_core.cluster.process import environment, seen_by_engine
from xi_core.testing.harness import plan_for
from xi_core.testing.waiting import until
from xi_core.wire.plan import LaunchPlan, RankAddress, Rendezvous

MIB = 2**20


def device(free: int = 1000, busy: float = 0.0, name: str = "cuda:0") -> Device:
    return Device(id=name, kind="cuda", memory=2000 * MIB, memory_free=free * MIB, utilisation=busy)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ([device()], False),
        ([device(free=1064)], False),
        ([device(free=936)], False),
        ([device(free=1065)], True),
        ([device(free=900)], True),
        ([device(busy=0.1)], False),
        ([device(busy=0.11)], True),
        ([device(name="cuda:1")], True),
        ([device(), device(name="cuda:1")], True),
        ([], True),
    ],
)
def test_what_is_noticeable(now: list[Device], told: bool) -> None:
    assert noticeable([device()], now) is told


async def watched(looks: list[Callable[[], list[Device]]], heard: list[bool] | None = None) -> list[list[Device]]:
    """What is told of these looks, one after another."""
    told: list[list[Device]] = []
    ended, answers = asyncio.Event(), list(heard or [])
    loop = asyncio.get_running_loop()

    def probe() -> list[Device]:
        if not looks:
            loop.call_soon_threadsafe(ended.set)
            return []
        return looks.pop(0)()

    def tell(devices: list[Device]) -> bool:
        told.append(devices)
        return answers.pop(0) if answers else True

    task = asyncio.ensure_future(DeviceWatch([device()], probe, tell, interval=0.001).run())
    await asyncio.wait_for(ended.wait(), 10)
    task.cancel()
    return told


async def test_changes_are_told_once() -> None:
    used = [device(free=500)]
    assert await watched([lambda: [device()], lambda: used, lambda: [device(free=510)], lambda: used]) == [used]


async def test_what_nobody_heard_is_told_again() -> None:
    used = [device(free=500)]
    assert await watched([lambda: used, lambda: used, lambda: used], heard=[False, True]) == [used, used]


async def test_a_look_that_fails_tells_nothing() -> None:
    def fails() -> list[Device]:
        raise OSError("the driver is gone")

    used = [device(free=500)]
    assert await watched([fails, list, lambda: used]) == [used]


async def test_small_changes_add_up() -> None:
    steps = [lambda free=free: [device(free=free)] for free in (960, 920, 880)]
    assert [found[0].memory_free // MIB for found in await watched(list(steps))] == [920]


async def test_a_machine_without_devices_is_not_looked_at() -> None:
    def never() -> list[Device]:
        raise AssertionError("looked")

    watch = DeviceWatch([], never, lambda devices: False, interval=0.001)
    await asyncio.wait_for(watch.run(), 1)
    await asyncio.wait_for(watch.look(), 1)


async def test_a_look_that_is_asked_for_doesnt_wait_for_the_pause() -> None:
    told: list[list[Device]] = []
    freed = [device(free=2000)]

    def tell(devices: list[Device]) -> bool:
        told.append(devices)
        return True

    watch = DeviceWatch([device()], lambda: freed, tell, interval=60.0)
    watching = asyncio.ensure_future(watch.run())
    asked = [watch.look(), watch.look()]
    await asyncio.wait_for(asyncio.gather(*asked), 1)
    assert told == [freed]
    freed = [device(free=500)]
    await asyncio.wait_for(watch.look(), 1)
    assert told[1:] == [freed]
    watching.cancel()


async def test_a_look_that_began_before_it_was_asked_for_is_not_the_one() -> None:
    looks, go_on = 0, threading.Event()

    def probe() -> list[Device]:
        nonlocal looks
        looks += 1
        assert go_on.wait(10)
        return [device()]

    watch = DeviceWatch([device()], probe, lambda devices: True, interval=60.0)
    watching = asyncio.ensure_future(watch.run())
    first = watch.look()
    await until(lambda: looks == 1, 10.0)
    second = watch.look()
    go_on.set()
    await asyncio.wait_for(first, 1)
    assert not second.done()
    await asyncio.wait_for(second, 1)
    assert looks == 2
    watching.cancel()


async def test_after_a_look_that_was_asked_for_the_next_is_not_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking takes long here, so that the pause would be; but a driver may take a moment to free what a dead process had."""
    monkeypatch.setattr(device_watch, "MOST_BUSY", 1e-9)
    found, told = [device()], asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(devices: list[Device]) -> bool:
        loop.call_soon(told.set)
        return True

    watch = DeviceWatch([device()], lambda: found, tell, interval=0.01)
    watching = asyncio.ensure_future(watch.run())
    await asyncio.wait_for(watch.look(), 1)
    found = [device(free=2000)]
    await asyncio.wait_for(told.wait(), 1)
    watching.cancel()


async def test_nobody_waits_for_a_look_that_will_not_come() -> None:
    watch = DeviceWatch([device()], lambda: [device()], lambda devices: True, interval=60.0)
    before = watch.look()
    watch.close()
    for asked in (before, watch.look()):
        await asyncio.wait_for(asked, 1)


class Three(DeviceProbe):
    def devices(self) -> list[Device]:
        uuids = ("GPU-5f0d4a3e-7c1b", "GPU-5fffffff-0000", "GPU-aa000000-1111")
        return [Device(id=f"cuda:{n}", kind="cuda", uuid=uuid) for n, uuid in enumerate(uuids)] + [
            Device(id=f"rocm:{n}", kind="rocm") for n in range(2)
        ]


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ("0,2", "02"),
        ("GPU-5f0d", "0"),
        ("GPU-5f", "01"),
        ("GPU-aa000000-1111,1", "12"),
        ("-1", ""),
        ("1,-1,0", "1"),
        ("NoDevFiles", ""),
        ("MIG-5f0d4a3e-7c1b", "012"),
        ("GPU-none", ""),
    ],
)
def test_devices_that_cuda_leaves(setting: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "import_path", lambda path: Three)
    found = host.find_devices([DeviceProbeInfo(name="t", probe="t")], {"CUDA_VISIBLE_DEVICES": setting})
    assert "".join(d.id[-1] for d in found if d.kind == "cuda") == left


@pytest.mark.parametrize(
    ("environ", "left"),
    [({}, "01"), ({"HIP_VISIBLE_DEVICES": "1"}, "1"), ({"ROCR_VISIBLE_DEVICES": "0"}, "0"), ({"CUDA_VISIBLE_DEVICES": ""}, "")],
)
def test_devices_that_hip_leaves(environ: dict[str, str], left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "import_path", lambda path: Three)
    found = host.find_devices([DeviceProbeInfo(name="t", probe="t")], environ)
    assert "".join(d.id[-1] for d in found if d.kind == "rocm") == left


def plan(devices: list[str], rendezvous: Rendezvous | None = None) -> LaunchPlan:
    return msgspec.structs.replace(plan_for("x:X", "", "x"), devices=devices, rendezvous=rendezvous)


def test_no_engine_sees_a_device_that_is_made_up() -> None:
    rank = RankAddress(rank=0, worker="w", host="127.0.0.1", ports=[1], devices=("fake:0",), interface="lo")
    made_up = plan(devices=["fake-cuda:0", "fake:1"], rendezvous=Rendezvous(rank=0, world=(rank,)))
    seen = seen_by_engine(made_up)
    assert seen.devices == []
    assert seen.rendezvous is not None
    assert seen.rendezvous.world[0].devices == ()
    assert made_up.devices == ["fake-cuda:0", "fake:1"]
    assert environment({"CUDA_VISIBLE_DEVICES": "0"}, made_up, {})["CUDA_VISIBLE_DEVICES"] == ""
    assert real(["cuda:0", "fake-cuda:1", "fake:0", "mps:0"]) == ["cuda:0", "mps:0"]


def test_a_replica_on_amds_devices_sees_only_these() -> None:
    found = environment({"HIP_VISIBLE_DEVICES": "0,1,2,3"}, plan(devices=["rocm:2", "rocm:3"]), {})
    assert (found["HIP_VISIBLE_DEVICES"], found["CUDA_VISIBLE_DEVICES"]) == ("2,3", "2,3")
    assert "HIP_VISIBLE_DEVICES" not in environment({}, plan(devices=["cuda:0"]), {})
