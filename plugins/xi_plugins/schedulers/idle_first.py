"""The `idle_first` scheduler: the idlest devices of one worker. Asked by the supervisor for one replica at a time."""

from __future__ import annotations

from xi_core.cluster.placement import (
    ClusterView,
    DeviceView,
    Placement,
    PlacementRequest,
    Rejection,
    Scheduler,
    Verdict,
    WorkerView,
    device_number,
)

Rank = tuple[int, int, float, str]


class IdleFirst(Scheduler):
    """Fewest replicas, then most free memory, then least utilisation, then name. All devices of a replica are of one worker.

    Where several devices are asked for, workers are compared by the busiest device that each would give. A replica without devices
    goes to the worker with the fewest replicas; a worker that has devices may take it too.
    """

    def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
        if not cluster.workers:
            return Rejection(reason=f"no worker is there to run {request.uid}; start one with `xi worker`")
        return _on_cpu(request, cluster) if request.n_gpu == 0 else _on_devices(request, cluster)


def _on_cpu(request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
    able = [worker for worker in cluster.workers if _has_engine(request, worker)]
    best = min(able, key=lambda worker: (worker.replicas, worker.worker), default=None)
    verdicts = tuple(_cpu_verdict(request, worker, best) for worker in cluster.workers)
    if best is None:
        return Rejection(reason=f"no worker has the engine {request.engine}", verdicts=verdicts)
    return Placement(worker=best.worker, verdicts=verdicts)


def _cpu_verdict(request: PlacementRequest, worker: WorkerView, best: WorkerView | None) -> Verdict:
    if worker is best:
        return Verdict(worker=worker.worker, taken=True, reason=f"runs on CPU; {_replicas(worker.replicas)} so far")
    if not _has_engine(request, worker):
        return Verdict(worker=worker.worker, taken=False, reason=f"has no engine {request.engine}")
    return Verdict(worker=worker.worker, taken=False, reason=f"{_replicas(worker.replicas)}; another worker is idler or first by name")


def _on_devices(request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
    offers = {worker.worker: offer for worker in cluster.workers if (offer := _offer(request, worker))}
    best = min(offers, key=lambda name: ([_rank(device) for device in reversed(offers[name])], name), default=None)
    chosen = offers[best] if best is not None else []
    verdicts = tuple(verdict for worker in cluster.workers for verdict in _verdicts(request, worker, chosen))
    if best is None:
        return Rejection(reason=_why_not(request), verdicts=verdicts)
    return Placement(worker=best, devices=tuple(device.device for device in chosen), verdicts=verdicts)


def _offer(request: PlacementRequest, worker: WorkerView) -> list[DeviceView]:
    """The idlest devices of this worker, the idlest first; empty where they are too few."""
    if not _has_engine(request, worker):
        return []
    fitting = sorted((device for place, device in enumerate(worker.devices) if _in_pool(request, device, place)), key=_rank)
    return fitting[: request.n_gpu] if len(fitting) >= request.n_gpu else []


def _rank(device: DeviceView) -> Rank:
    return (device.replicas, -device.memory_free, device.utilisation, device.device)


def _verdicts(request: PlacementRequest, worker: WorkerView, chosen: list[DeviceView]) -> list[Verdict]:
    if not worker.devices:
        return [Verdict(worker=worker.worker, taken=False, reason="has no devices, only CPU")]
    fitting = sum(_in_pool(request, device, place) for place, device in enumerate(worker.devices))
    return [
        Verdict(
            worker=worker.worker,
            device=device.device,
            taken=any(device is one for one in chosen),
            reason=_reason(request, worker, place, chosen, fitting),
        )
        for place, device in enumerate(worker.devices)
    ]


def _reason(request: PlacementRequest, worker: WorkerView, place: int, chosen: list[DeviceView], fitting: int) -> str:
    device = worker.devices[place]
    state = f"{_replicas(device.replicas)}, {device.memory_free / 2**30:.1f} GiB free, {device.utilisation:.0%} busy"
    if any(device is one for one in chosen):
        return state
    if not _has_engine(request, worker):
        return f"its worker has no engine {request.engine}"
    if not _in_pool(request, device, place):
        return f"not in the pool {_pool(request)}"
    if fitting < request.n_gpu:
        return f"its worker has {fitting} device(s) that would do, and {request.n_gpu} are needed on one worker"
    return f"{state}; others are idler or first by name"


def _why_not(request: PlacementRequest) -> str:
    pool = f" from the pool {_pool(request)}" if request.gpu_idx is not None else ""
    return (
        f"no worker with the engine {request.engine} has {request.n_gpu} device(s){pool} to give; ask for fewer, or for none to run on CPU"
    )


def _in_pool(request: PlacementRequest, device: DeviceView, place: int) -> bool:
    return request.gpu_idx is None or device_number(device.device, place) in request.gpu_idx


def _has_engine(request: PlacementRequest, worker: WorkerView) -> bool:
    return not worker.engines or request.engine in worker.engines  # none listed: the worker hasn't told


def _pool(request: PlacementRequest) -> str:
    return ",".join(str(number) for number in request.gpu_idx or ())


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"
