"""Placement: the views that a scheduler decides on, and its decision, with a verdict for every device."""

from __future__ import annotations

from abc import ABC, abstractmethod

from msgspec import Struct, field


class DeviceView(Struct, kw_only=True, frozen=True):
    """One device as a scheduler sees it. Memory in bytes; `replicas` counts those placed on it."""

    worker: str
    device: str
    kind: str
    memory: int = 0
    memory_free: int = 0
    utilisation: float = 0.0
    replicas: int = 0


class WorkerView(Struct, kw_only=True, frozen=True):
    """One live worker; a worker without accelerators has no devices and takes CPU replicas."""

    worker: str
    devices: tuple[DeviceView, ...] = ()
    replicas: int = 0
    engines: tuple[str, ...] = ()


class ClusterView(Struct, kw_only=True, frozen=True):
    """All live workers, in the order of their names."""

    workers: tuple[WorkerView, ...] = ()


class PlacementRequest(Struct, kw_only=True, frozen=True):
    """One replica to place: on which engine, with how many devices (0 = CPU), from which pool of device numbers (None = any)."""

    uid: str
    engine: str
    n_gpu: int
    gpu_idx: tuple[int, ...] | None = None


def device_number(device: str, place: int) -> int:
    """The number by which `gpu_idx` names a device: 1 for `cuda:1`; its `place` among its worker's devices where the id holds none."""
    _, colon, number = device.rpartition(":")
    return int(number) if colon and number.isdecimal() else place


class Verdict(Struct, kw_only=True, frozen=True):
    """Why a device, or a worker where `device` is empty, was taken or not."""

    worker: str
    device: str = ""
    taken: bool
    reason: str


class Placement(Struct, kw_only=True, frozen=True):
    """Where the replica goes."""

    worker: str
    devices: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


class Rejection(Struct, kw_only=True, frozen=True):
    """It goes nowhere, and why."""

    reason: str
    verdicts: tuple[Verdict, ...] = field(default_factory=tuple)


class Scheduler(ABC):
    """Chooses devices for one replica at a time. Pure: no clock, no I/O, no state."""

    @abstractmethod
    def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
        """The best place for this replica now."""


class SchedulerInfo(Struct, kw_only=True):
    """Descriptor of a scheduler: its name and `module:Class`."""

    name: str
    scheduler: str
    aliases: tuple[str, ...] = ()
    description: str = ""
