"""What must hold in a simulated cluster: at every moment, and once the chaos is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from xi_core.cluster.deadlines import LEASE, wake_of
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.placement import Rejection
from xi_core.cluster.replicas import WINDOW, Start
from xi_core.testing.simulation.processes import Process
from xi_core.testing.simulation.supervisors import SimSupervisor
from xi_core.testing.simulation.workers import SimWorker

SLACK = 0.2
"""Seconds by which a timer may be late."""
LOADING = 4.0
"""Seconds from the beginning of a life in which it is READY, where nothing fails."""
DYING = 4.0
"""Seconds after the end of a launch in which processes of it may still be dying."""


class Broken(AssertionError):
    """Something doesn't hold."""


def require(holds: bool, what: str) -> None:
    """Raises `Broken` unless it holds."""
    if not holds:
        raise Broken(what)


def books(worker: SimWorker, new: Process) -> None:
    """A process that takes its devices shares no device with one that takes it whole, and all memory that is promised is there."""
    for device in worker.devices:
        on_it = [p for p in (*worker.running.values(), *worker.dying) if p.spawned and device.id in p.devices]
        if new not in on_it:
            continue
        lives = ", ".join(f"{p.life} rank {p.rank} ({p.state})" for p in on_it)
        require(len(on_it) == 1 or not any(p.exclusive for p in on_it), f"{worker.name} {device.id} is booked twice: {lives}")
        promised = sum(p.need(device.memory) for p in on_it)
        require(
            not device.memory or promised <= device.memory, f"{worker.name} {device.id}: more memory is promised than there is: {lives}"
        )


class Lives:
    """Lives are numbered upwards, over supervisors too."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, int]] = {}

    def begin(self, start: Start) -> None:
        """A life begins."""
        epoch, _, number = start.incarnation.rpartition("-")
        last = self._last.get(start.replica_id, ("", 0))
        require((epoch, int(number)) > last, f"{start.replica_id}: life {start.incarnation} comes after {last}")
        self._last[start.replica_id] = epoch, int(number)


def states(core: Lifecycle, now: float) -> None:
    """What the lifecycle says of its launches is consistent, and each of them gets on or has a deadline."""
    for launch in core.listed():
        who = f"launch {launch.uid}, {launch.state}"
        if launch.end:
            require(not launch.route().replicas, f"{who}: has routes though it has ended")
            continue
        wanted = [r for r in launch.replicas if r.wanted]
        require(len(wanted) <= launch.wanted.spec.replica, f"{who}: {len(wanted)} replicas are wanted, not {launch.wanted.spec.replica}")
        if launch.state == "READY":
            require(len(wanted) == launch.wanted.spec.replica, f"{who}: {len(wanted)} of {launch.wanted.spec.replica} replicas")
            require(all(rank.state == "READY" for r in wanted for rank in r.ranks), f"{who}: a rank isn't")
            require(all(r.route is not None for r in wanted), f"{who}: a replica has no route")
        elif launch.deadline is not None:
            require(now <= launch.deadline + SLACK, f"{who}: its deadline has passed")
        else:
            require(False, f"{who}: it has no deadline and isn't READY")


def spares_what_serves(core: Lifecycle, ready: set[str]) -> None:
    """A launch that was READY isn't FAILED while a replica of it is. `ready`: the uids of such launches, kept over supervisors; it is
    brought up to date."""
    listed = core.listed()
    ready &= {launch.uid for launch in listed}
    for launch in listed:
        if launch.state == "READY":
            ready.add(launch.uid)
        for replica in launch.live if launch.end == "FAILED" and launch.uid in ready else ():
            serves = not replica.leaving and replica.ending is None and all(r.state == "READY" and not r.gone for r in replica.ranks)
            require(not serves, f"launch {launch.uid} has FAILED ({launch.error}) and takes {replica.replica_id} along, which serves")
        if launch.end:
            ready.discard(launch.uid)


def drains(core: Lifecycle) -> None:
    """What runs on a drained worker is on its way from there."""
    for worker in core.drains:
        for _, launch, replica, _ in core._state.ledger.on(worker):
            going = launch.end or replica.leaving or replica.ending is not None or replica.move_by is not None
            require(bool(going), f"{replica.replica_id} ({replica.state}, {replica.incarnation}) stays on {worker}, which is drained")


def remembers(core: Lifecycle, drained: Mapping[str, float]) -> None:
    """A supervisor that starts again knows which workers are drained."""
    require(core.drains == drained, f"drained are {sorted(drained)}, and the new supervisor knows of {sorted(core.drains)}")


def waits_for_room_only(core: Lifecycle, now: float, settled_at: float) -> None:
    """A replica that waits has no place, and one whose worker is away gets another where there is one."""
    wakes = [at for launch in core._state.launches.values() if (at := wake_of(core._state, launch.uid)) is not None]
    require(core.next_wake() == min(wakes, default=None), f"the next wake is said to be at {core.next_wake()}, of {wakes}")
    if now < settled_at + SLACK:
        return
    for launch, replica in list(core._state.replicas()):
        due = replica.start_at is None or replica.start_at + SLACK < now
        if launch.end or replica.leaving:
            continue
        if not replica.live and due:
            place = core._state.place(launch, replica)
            require(isinstance(place, Rejection), f"{replica.replica_id} waits ({replica.stage}) though there is a place: {place}")
        elif replica.lost_at is not None:
            require(now <= replica.lost_at + 2 * LEASE + SLACK, f"{replica.replica_id}: its worker is away for too long")


def follows(supervisor: SimSupervisor) -> None:
    """A gateway that has taken each change has the table."""
    full = {model.uid: model for model in supervisor.table.snapshot().models}
    told = {launch.uid: launch.route() for launch in supervisor.lifecycle.listed()}
    require(supervisor.followed == full == told, f"the routing table went astray: {supervisor.followed} {told}")


def converged(now: float, supervisor: SimSupervisor, workers: Sequence[SimWorker], wanted: Iterable[str]) -> None:
    """The chaos is over: exactly what is wanted runs, as far as there is room, and nothing else."""
    core = supervisor.lifecycle
    processes = {(p.life, p.rank): p for w in workers for p in (*w.running.values(), *w.dying)}
    for worker in workers:
        member = core.members.get(worker.name)
        require(worker.registered and member is not None and member.present, f"{worker.name} isn't in")
    listed = {launch.uid: launch for launch in core.listed()}
    for uid in wanted:
        require(uid in listed, f"launch {uid} is forgotten")
    known: set[tuple[str, int]] = set()
    for launch in listed.values():
        for replica in launch.replicas:
            where = f"{replica.replica_id} ({replica.incarnation}, {replica.state}, {replica.stage})"
            if launch.end and now < launch.ended_at + DYING:
                known.update((replica.incarnation, number) for number, _ in enumerate(replica.ranks))
                continue
            require(not (launch.end and replica.live), f"{where} is still live, though its launch is {launch.state}")
            require(not replica.leaving, f"{where} should be gone")
            if launch.end:
                continue
            paused = replica.error is not None and replica.start_at is not None and now < replica.start_at <= now + WINDOW
            if not replica.live and not paused:  # what died again and again is tried once in a while
                require(isinstance(core._state.place(launch, replica), Rejection), f"{where} waits though there is a place")
            young = now < supervisor.began.get(replica.incarnation, -LOADING) + LOADING  # another launch gave its room up late
            for number, _ in enumerate(replica.ranks):
                known.add((replica.incarnation, number))
                process = processes.get((replica.incarnation, number))
                require(young or (process is not None and process.state == "READY"), f"{where}: rank {number} doesn't run")
            require(not replica.live or young or replica.state == "READY", f"{where} isn't READY")
    for (life, rank), process in processes.items():
        require((life, rank) in known, f"{life} rank {rank} runs on {process.worker}, and nobody wants it")
