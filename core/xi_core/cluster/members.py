"""The workers that a supervisor knows, the view of them that a scheduler gets, and the check of its decision. Pure: see `lifecycle`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Replica
from xi_core.cluster.placement import ClusterView, DeviceView, Placement, PlacementRequest, Rejection, Scheduler, WorkerView, device_number


@dataclass
class Member:
    """One worker, as it registered. `present` is False while its link is down."""

    name: str
    incarnation: str
    devices: list[Device]
    engines: tuple[str, ...] = ()
    """Names of the engines that run on it."""
    present: bool = True
    leaving: bool = False
    """It was told to stop: its replicas end because of that, which is no fault of theirs."""


def view(members: Iterable[Member], replicas: Iterable[Replica]) -> ClusterView:
    """The present workers with their devices, and how many live replicas hold each."""
    live = [r for r in replicas if r.live]
    return ClusterView(
        workers=tuple(_worker_view(m, [r for r in live if r.worker == m.name]) for m in sorted(members, key=lambda m: m.name) if m.present)
    )


def _worker_view(member: Member, replicas: list[Replica]) -> WorkerView:
    return WorkerView(
        worker=member.name,
        devices=tuple(
            DeviceView(
                worker=member.name,
                device=d.id,
                kind=d.kind,
                memory=d.memory,
                memory_free=d.memory_free,
                utilisation=d.utilisation,
                replicas=sum(d.id in r.devices for r in replicas),
            )
            for d in member.devices
        ),
        replicas=len(replicas),
        engines=member.engines,
    )


def place(scheduler: Scheduler, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
    """The scheduler's decision, checked: no plugin can put a replica where there is no room."""
    if not cluster.workers:
        return Rejection(reason="no worker is connected")
    decision = scheduler.place(request, cluster)
    if isinstance(decision, Rejection):
        return decision
    wrong = _wrong(request, decision, cluster)
    if wrong:
        return Rejection(reason=f"the scheduler's answer can't be used: {wrong}", verdicts=decision.verdicts)
    taken = _taken(decision, cluster)
    if taken:
        names = ", ".join(f"'{name}'" for name in taken)
        reason = f"device {names} is taken on worker {decision.worker}; terminate a model, or run on CPU (n_gpu none)"
        return Rejection(reason=reason, verdicts=decision.verdicts)
    return decision


def _wrong(request: PlacementRequest, decision: Placement, cluster: ClusterView) -> str:
    worker = next((w for w in cluster.workers if w.worker == decision.worker), None)
    if worker is None:
        return f"there is no worker '{decision.worker}'"
    if request.engine not in worker.engines:
        return f"engine {request.engine} doesn't run on worker '{decision.worker}'"
    if len(decision.devices) != request.n_gpu or len(set(decision.devices)) != request.n_gpu:
        return f"{request.n_gpu} devices were asked for, {len(set(decision.devices))} given"
    numbers = {d.device: device_number(d.device, place) for place, d in enumerate(worker.devices)}
    for name in decision.devices:
        if name not in numbers:
            return f"worker '{decision.worker}' has no device '{name}'"
        if request.gpu_idx is not None and numbers[name] not in request.gpu_idx:
            return f"device '{name}' is not among those of gpu_idx"
    return ""


def _taken(decision: Placement, cluster: ClusterView) -> list[str]:
    """The chosen devices that other replicas hold."""
    return [
        d.device for w in cluster.workers if w.worker == decision.worker for d in w.devices if d.device in decision.devices and d.replicas
    ]


def explain(rejection: Rejection) -> str:
    """A rejection in words, with the reason of each candidate."""
    verdicts = "; ".join(f"{v.worker}{' ' + v.device if v.device else ''}: {v.reason}" for v in rejection.verdicts if not v.taken)
    return f"{rejection.reason} ({verdicts})" if verdicts else rejection.reason
