"""The workers that a supervisor knows, the view of them that a scheduler gets, and the check of its decision. Pure: see `lifecycle`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xi_core.api.control import DeviceVerdict, PlacementReport, RankStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import LaunchEntry, Wanted
from xi_core.cluster.placement import ClusterView, DeviceView, Placement, PlacementRequest, Rejection, Scheduler, WorkerView
from xi_core.cluster.replicas import Replica


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
    draining: bool = False
    """Nothing new is placed on it, and what it runs moves elsewhere."""
    address: str = ""
    """The host under which other machines reach it."""


def view(members: Iterable[Member], launches: Iterable[LaunchEntry], without: Replica | None = None) -> ClusterView:
    """The workers that may take replicas, with what the live replicas hold of each, those of `without` left out."""
    held = [_Held(launch.wanted, replica) for launch in launches for replica in launch.replicas if replica.live and replica is not without]
    able = sorted((m for m in members if m.present and not m.draining), key=lambda m: m.name)
    return ClusterView(workers=tuple(_worker_view(member, held) for member in able))


@dataclass
class _Held:
    """A live replica and what its launch takes of each device."""

    wanted: Wanted
    replica: Replica

    def holds(self, worker: str, device: str = "") -> bool:
        """Whether a rank of it is on this worker, or holds this device of it."""
        return any(r.worker == worker and (not device or device in r.devices) for r in self.replica.ranks if not r.gone)

    def need(self, device: Device) -> int:
        """Bytes of the device's memory that are promised to it."""
        return max(self.wanted.memory, round(self.wanted.memory_share * device.memory))


def _worker_view(member: Member, held: list[_Held]) -> WorkerView:
    here = [one for one in held if one.holds(member.name)]
    return WorkerView(
        worker=member.name,
        devices=tuple(_device_view(member.name, device, [h for h in here if h.holds(member.name, device.id)]) for device in member.devices),
        replicas=len(here),
        engines=member.engines,
        address=member.address,
    )


def _device_view(worker: str, device: Device, held: list[_Held]) -> DeviceView:
    """A probe sees the memory of replicas that have loaded; what others were promised comes off what it says is free."""
    loading = sum(h.need(device) for h in held if h.replica.state != "READY")
    promised = sum(h.need(device) for h in held)
    return DeviceView(
        worker=worker,
        device=device.id,
        kind=device.kind,
        memory=device.memory,
        memory_free=min(device.memory_free - loading, device.memory - promised),
        utilisation=device.utilisation,
        replicas=len(held),
        domain=device.domain,
    )


def place(scheduler: Scheduler, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
    """The scheduler's decision, checked: no plugin can put a replica where there is no room."""
    if not cluster.workers:
        return Rejection(reason="no worker is connected that may take replicas")
    decision = scheduler.place(request, cluster)
    if isinstance(decision, Rejection):
        return decision
    wrong = _wrong(request, decision, cluster)
    return Rejection(reason=f"the scheduler's answer can't be used: {wrong}", verdicts=decision.verdicts) if wrong else decision


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
