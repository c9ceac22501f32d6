"""Placement: the views that a scheduler decides on, and its decision, with a verdict for every device."""

from __future__ import annotations

from abc import ABC, abstractmethod

from msgspec import Struct, field


# gc=False: there are thousands of them, and no cycles of them.
class DeviceView(Struct, kw_only=True, frozen=True, gc=False):
    """One device as a scheduler sees it. Memory in bytes; `replicas` counts those placed on it.

    `memory_free` is what a new replica may have: what is promised to replicas that are still loading is taken off already.
    """

    worker: str
    device: str
    kind: str
    memory: int = 0
    memory_free: int = 0
    utilisation: float = 0.0
    replicas: int = 0
    domain: str = ""
    """Devices of one worker with the same domain are joined by its fastest link."""
    exclusive: bool = False
    """A replica holds it that shares it with no other."""


class WorkerView(Struct, kw_only=True, frozen=True, gc=False):
    """One live worker; a worker without accelerators has no devices and takes CPU replicas."""

    worker: str
    devices: tuple[DeviceView, ...] = ()
    replicas: int = 0
    engines: tuple[str, ...] = ()
    address: str = ""
    """The host under which other workers reach it."""
    memory: int = 0
    """Bytes of main memory; 0 where nobody knows."""


class UnreadyWorker(Struct, kw_only=True, frozen=True, gc=False):
    """A worker that belongs to the cluster, and may take no replicas now."""

    worker: str
    reason: str
    address: str = ""
    """Empty where it has told none since the supervisor started."""
    devices: tuple[str, ...] = ()


class ClusterView(Struct, kw_only=True, frozen=True):
    """All workers that may take replicas, in the order of their names."""

    workers: tuple[WorkerView, ...] = ()
    unready: tuple[UnreadyWorker, ...] = ()
    """The others of those that the request could mean. Schedulers needn't look at them: their verdicts are added to the decision."""


class Assignment(Struct, frozen=True, gc=False):
    """What one rank of a replica gets: a worker, and devices of it."""

    worker: str
    devices: tuple[str, ...] = ()


class PlacementRequest(Struct, kw_only=True, frozen=True):
    """One replica to place. `gpu_idx` and `workers` are the pools to choose from (None = any).

    A replica that is sharded over `n_worker` workers gets `n_gpu` devices (0 = CPU) on each of as many different workers.
    """

    uid: str
    engine: str
    n_gpu: int
    gpu_idx: tuple[int, ...] | None = None
    n_worker: int = 1
    workers: tuple[str, ...] | None = None
    """Names or addresses of the workers that may be chosen."""
    memory: int = 0
    """Bytes that each device must have free; 0 where nobody knows."""
    memory_share: float = 0.0
    """Part of each device's whole memory that the engine takes, whatever the model."""
    main_memory: int = 0
    """Bytes of weights that a worker must hold in main memory, where the replica gets no devices; 0 where nobody knows."""
    held: tuple[Assignment, ...] = ()
    """What the launch's other replicas hold."""
    gpu_pool: int | None = None
    """Most devices that all replicas of the launch may hold together."""
    exclusive: bool = False
    """A device takes one replica only."""
    brings_engine: bool = False
    """It runs in an environment of its own, which holds the engine: the worker needn't have it."""
    explain: bool = True
    """Verdicts are wanted even if there is a place. A `Rejection` has them always."""

    def names(self, worker: WorkerView | UnreadyWorker) -> bool:
        """Whether it is among the workers that may be chosen."""
        return self.workers is None or not {worker.worker, worker.address}.isdisjoint(self.workers)

    def need(self, device: DeviceView) -> int:
        """Bytes of this device's memory that the replica takes."""
        return max(self.memory, round(self.memory_share * device.memory)) if self.memory_share else self.memory

    def objection(self, worker: WorkerView, device: DeviceView, place: int) -> str:
        """Why the request rules this device out, whatever a scheduler prefers; empty where it doesn't. `place`: its index on its worker."""
        if self.gpu_idx is not None and device_number(device.device, place) not in self.gpu_idx:
            return f"not in the pool {','.join(str(number) for number in self.gpu_idx)}"
        if device.replicas and (self.exclusive or device.exclusive):
            return f"holds {device.replicas} replica(s), and XI_ALLOW_MULTI_REPLICA_PER_GPU=0 allows one per device"
        if self.gpu_pool is not None:
            held = {(a.worker, name) for a in self.held for name in a.devices}
            if len(held) + self.n_gpu * self.n_worker > self.gpu_pool and (worker.worker, device.device) not in held:
                return f"the pool of {self.gpu_pool} device(s) is used up by others"
        need = self.need(device)
        if device.memory and need > device.memory_free:
            return (
                f"{need / 2**30:.1f} GiB are needed, {max(0, device.memory_free) / 2**30:.1f} of {device.memory / 2**30:.1f} GiB are free"
            )
        return ""

    def objection_to_worker(self, worker: WorkerView) -> str:
        """Why the request rules this worker out; empty where it doesn't."""
        if not self.names(worker):
            return f"not among the workers asked for ({', '.join(self.workers or ())})"
        if not self.brings_engine and worker.engines and self.engine not in worker.engines:  # none listed: the worker hasn't told
            return f"has no engine {self.engine}"
        if self.n_gpu == 0 and worker.memory and self.main_memory > worker.memory:
            return f"the weights alone take {self.main_memory / 2**30:.1f} GiB, its main memory is {worker.memory / 2**30:.1f} GiB"
        return ""


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
    """Where the replica goes: one assignment for each rank, that of rank 0 first."""

    assignments: tuple[Assignment, ...]
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
