"""The `spread` scheduler: a launch's replicas on as many workers as there are, so that one lost machine takes few of them."""

from __future__ import annotations

from xi_core.cluster.choosing import Rank, RankedScheduler
from xi_core.cluster.placement import DeviceView, PlacementRequest, WorkerView
from xi_core.natural import natural


class Spread(RankedScheduler):
    """The worker with the fewest replicas of this launch, then the one with the fewest of all; on it the idlest devices."""

    def rank_device(self, request: PlacementRequest, worker: WorkerView, device: DeviceView) -> Rank:
        return (*self.rank_worker(request, worker)[:2], device.replicas, -device.memory_free, device.utilisation, natural(device.device))

    def rank_worker(self, request: PlacementRequest, worker: WorkerView) -> Rank:
        own = sum(assignment.worker == worker.worker for assignment in request.held)
        return (own, worker.replicas, worker.worker)
