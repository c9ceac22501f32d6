"""`RankedScheduler`: all that schedulers have in common but their taste. A subclass ranks workers and devices; the lowest rank wins."""

from __future__ import annotations

from abc import abstractmethod
from heapq import nsmallest
from typing import Any

from xi_core.cluster.placement import (
    Assignment,
    ClusterView,
    DeviceView,
    Placement,
    PlacementRequest,
    Rejection,
    Scheduler,
    Verdict,
    WorkerView,
)

Rank = tuple[Any, ...]
"""Compared element by element; of one scheduler all have the same types in the same places."""


class RankedScheduler(Scheduler):
    """Takes the best devices of the best workers, and gives every candidate's reason."""

    @abstractmethod
    def rank_device(self, request: PlacementRequest, worker: WorkerView, device: DeviceView) -> Rank:
        """How good this device would be; lower is better."""

    @abstractmethod
    def rank_worker(self, request: PlacementRequest, worker: WorkerView) -> Rank:
        """How good this worker would be for a rank without devices; lower is better."""

    def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
        offers = {w.worker: offer for w in cluster.workers if (offer := self._offer(request, w)) is not None}
        by_name = {w.worker: w for w in cluster.workers}
        best = nsmallest(request.n_worker, offers, key=lambda name: (self._rank_offer(request, by_name[name], offers[name]), name))
        enough = len(best) == request.n_worker
        chosen = [Assignment(name, tuple(d.device for d in offers[name])) for name in best] if enough else []
        if enough and not request.explain:
            return Placement(assignments=tuple(chosen))
        verdicts = tuple(v for w in cluster.workers for v in self._verdicts(request, w, chosen, offers))
        if not enough:
            return Rejection(reason=_why_not(request, len(offers), ready=not cluster.unready), verdicts=verdicts)
        return Placement(assignments=tuple(chosen), verdicts=verdicts)

    def _offer(self, request: PlacementRequest, worker: WorkerView) -> list[DeviceView] | None:
        """The devices that this worker would give, the best first; None where it can't take a rank."""
        if request.objection_to_worker(worker):
            return None
        if request.n_gpu == 0:
            return []
        fitting = [d for place, d in enumerate(worker.devices) if not request.objection(worker, d, place)]
        if request.n_gpu == 1:
            return [min(fitting, key=lambda d: self.rank_device(request, worker, d))] if fitting else None
        fitting.sort(key=lambda d: self.rank_device(request, worker, d))
        joined = [[d for d in fitting if d.domain == domain][: request.n_gpu] for domain in dict.fromkeys(d.domain for d in fitting)]
        # `fitting` is sorted, so the domain of the best device comes first; a set within one domain beats a better one across two.
        whole = next((devices for devices in joined if len(devices) == request.n_gpu), fitting[: request.n_gpu])
        return whole if len(whole) == request.n_gpu else None

    def _rank_offer(self, request: PlacementRequest, worker: WorkerView, devices: list[DeviceView]) -> list[Rank]:
        """Workers are compared by the worst device that each would give."""
        if not devices:
            return [self.rank_worker(request, worker)]
        return [self.rank_device(request, worker, device) for device in reversed(devices)]

    def _verdicts(
        self, request: PlacementRequest, worker: WorkerView, chosen: list[Assignment], offers: dict[str, list[DeviceView]]
    ) -> list[Verdict]:
        taken = next((a for a in chosen if a.worker == worker.worker), None)
        if request.n_gpu == 0 or not worker.devices:
            return [Verdict(worker=worker.worker, taken=taken is not None, reason=_worker_reason(request, worker, taken, bool(chosen)))]
        return [
            Verdict(
                worker=worker.worker,
                device=device.device,
                taken=taken is not None and device.device in taken.devices,
                reason=_device_reason(request, worker, place, taken, worker.worker in offers, bool(chosen)),
            )
            for place, device in enumerate(worker.devices)
        ]


def _worker_reason(request: PlacementRequest, worker: WorkerView, taken: Assignment | None, chosen: bool) -> str:
    if taken is not None:
        return f"runs on CPU; {replicas(worker.replicas)} so far"
    if objection := request.objection_to_worker(worker):
        return objection
    if request.n_gpu:
        return "has no devices, only CPU"
    return f"{replicas(worker.replicas)}; {'another worker ranks before it' if chosen else 'it would do'}"


def _device_reason(request: PlacementRequest, worker: WorkerView, place: int, taken: Assignment | None, offered: bool, chosen: bool) -> str:
    device = worker.devices[place]
    state = f"{replicas(device.replicas)}, {device.memory_free / 2**30:.1f} GiB free, {device.utilisation:.0%} busy"
    if taken is not None and device.device in taken.devices:
        return state
    objection = request.objection_to_worker(worker) or request.objection(worker, device, place)
    if objection:
        return objection
    if not offered:
        fitting = sum(not request.objection(worker, d, at) for at, d in enumerate(worker.devices))
        return f"its worker has {fitting} device(s) that would do, and {request.n_gpu} are needed on one worker"
    return f"{state}; {'others rank before it' if chosen else 'it would do'}"


def _why_not(request: PlacementRequest, able: int, ready: bool) -> str:
    """`ready`: whether all workers are that the request may mean."""
    what = (
        f"{request.n_gpu} device(s) to give"
        if request.n_gpu
        else f"the engine {request.engine}{' and room for the weights' if request.main_memory else ''}"
    )
    advice = "; ask for fewer, or for none to run on CPU" if request.n_gpu and ready else ""
    which = " that was asked for" if request.workers is not None else ""
    which += "" if ready else " and is ready" if which else " that is ready"
    if request.n_worker > 1:
        return f"{request.n_worker} workers with {what} are needed, and {able} can take a rank of {request.uid}{advice}"
    return f"no worker{which} has {what}{advice}"


def replicas(count: int) -> str:
    """So many replicas, in words."""
    return "1 replica" if count == 1 else f"{count} replicas"
