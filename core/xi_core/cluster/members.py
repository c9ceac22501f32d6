"""The workers that a supervisor knows, and the check of a scheduler's decision. Pure: see `lifecycle`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from xi_core.api.control import DeviceVerdict, PlacementReport, RankStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.placement import (
    ClusterView,
    Placement,
    PlacementRequest,
    Rejection,
    Scheduler,
    UnreadyWorker,
    Verdict,
    WorkerView,
)


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
    address: str = ""
    """The host under which other machines reach it."""
    memory: int = 0
    """Bytes of main memory; 0 where nobody knows."""

    def gains(self, devices: list[Device]) -> bool:
        """Whether it has room, if its devices are like this now, for something that found none before."""
        same = [d.id for d in devices] == [d.id for d in self.devices]
        return not same or any(new.memory_free > old.memory_free for new, old in zip(devices, self.devices, strict=True))


def place(scheduler: Scheduler, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
    """The scheduler's decision, checked: no plugin can put a replica where there is no room. Of workers that aren't ready it says so."""
    unready = _meant(request, cluster) if cluster.unready else ()
    decision = _decided(scheduler, request, msgspec.structs.replace(cluster, unready=unready) if cluster.unready else cluster)
    if not unready or (isinstance(decision, Placement) and not request.explain):
        return decision
    return msgspec.structs.replace(decision, verdicts=(*decision.verdicts, *_verdicts(request, unready)))


def _decided(scheduler: Scheduler, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
    if not cluster.workers:
        return Rejection(reason="no worker is connected that may take replicas")
    if cluster.unready and not any(request.names(worker) for worker in cluster.workers):
        return Rejection(reason="none of the workers asked for may take replicas now")
    try:
        decision = scheduler.place(request, cluster)
        if isinstance(decision, Rejection):
            return decision
        wrong = _wrong(request, decision, cluster)
    except Exception as error:  # a plugin: whatever it does, other launches and the lifecycle's clock must go on
        return Rejection(reason=f"the scheduler failed: {type(error).__name__}: {error}")
    return Rejection(reason=f"the scheduler's answer can't be used: {wrong}", verdicts=decision.verdicts) if wrong else decision


def _meant(request: PlacementRequest, cluster: ClusterView) -> tuple[UnreadyWorker, ...]:
    """Those that the request may mean; by an address that nobody has told, also one that has told none."""
    if request.workers is None:
        return cluster.unready
    everybody: tuple[WorkerView | UnreadyWorker, ...] = (*cluster.workers, *cluster.unready)
    told = {name for one in everybody for name in (one.worker, one.address)}
    untold = not told.issuperset(request.workers)
    return tuple(one for one in cluster.unready if request.names(one) or (untold and not one.address))


def _verdicts(request: PlacementRequest, unready: Iterable[UnreadyWorker]) -> list[Verdict]:
    """One for each worker; in a dry run, which shows devices, one for each of them."""
    return [
        Verdict(worker=one.worker, device=device, taken=False, reason=one.reason)
        for one in unready
        for device in (one.devices if request.n_gpu and request.explain else ()) or ("",)
    ]


def _wrong(request: PlacementRequest, decision: Placement, cluster: ClusterView) -> str:
    names = [assignment.worker for assignment in decision.assignments]
    if len(names) != request.n_worker or len(set(names)) != len(names):
        return f"{request.n_worker} different workers were asked for, {len(set(names))} given"
    for assignment in decision.assignments:
        worker = next((w for w in cluster.workers if w.worker == assignment.worker), None)
        if worker is None:
            return f"there is no worker '{assignment.worker}'"
        if objection := request.objection_to_worker(worker) or _wrong_devices(request, worker, assignment.devices):
            return f"worker '{worker.worker}' {objection}"
    return ""


def _wrong_devices(request: PlacementRequest, worker: WorkerView, devices: tuple[str, ...]) -> str:
    if len(devices) != request.n_gpu or len(set(devices)) != request.n_gpu:
        return f"was to give {request.n_gpu} devices, not {len(set(devices))}"
    places = {device.device: (at, device) for at, device in enumerate(worker.devices)}
    for name in devices:
        if name not in places:
            return f"has no device '{name}'"
        if objection := request.objection(worker, places[name][1], places[name][0]):
            return f"can't give device '{name}': {objection}"
    return ""


def explain(rejection: Rejection) -> str:
    """A rejection in words, with the reason of each candidate."""
    verdicts = "; ".join(f"{v.worker}{' ' + v.device if v.device else ''}: {v.reason}" for v in rejection.verdicts if not v.taken)
    return f"{rejection.reason} ({verdicts})" if verdicts else rejection.reason


def report(decision: Placement | Rejection) -> PlacementReport:
    """A decision as the control API shows it."""
    candidates = [DeviceVerdict(worker=v.worker, device=v.device, taken=v.taken, reason=v.reason) for v in decision.verdicts]
    if isinstance(decision, Rejection):
        return PlacementReport(placed=False, reason=decision.reason, candidates=candidates)
    ranks = [
        RankStatus(rank=rank, state="PENDING", worker=a.worker, devices=list(a.devices)) for rank, a in enumerate(decision.assignments)
    ]
    return PlacementReport(placed=True, ranks=ranks, candidates=candidates)
