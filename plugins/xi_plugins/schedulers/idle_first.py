"""The `idle_first` scheduler: the idlest devices. Asked by the supervisor for one replica at a time."""

from __future__ import annotations

from xi_core.cluster.choosing import Rank, RankedScheduler
from xi_core.cluster.placement import DeviceView, PlacementRequest, WorkerView
from xi_core.natural import natural


class IdleFirst(RankedScheduler):
    """Fewest replicas, then most free memory, then least utilisation, then name.

    Where several devices are asked for, workers are compared by the busiest device that each would give. A replica without devices
    goes to the worker with the fewest replicas; a worker that has devices may take it too.
    """

    def rank_device(self, request: PlacementRequest, worker: WorkerView, device: DeviceView) -> Rank:
        return (device.replicas, -device.memory_free, device.utilisation, natural(device.device))

    def rank_worker(self, request: PlacementRequest, worker: WorkerView) -> Rank:
        return (worker.replicas, worker.worker)
