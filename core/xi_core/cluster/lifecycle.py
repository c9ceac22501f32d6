"""Lifecycle: what happens to launches and their replicas. Pure: events in, actions out; no I/O and no clock (`now` comes with each event).

The supervisor feeds it and carries out the `Start` and `Stop` actions that it answers. What runs is known from workers only: a
replica is live from its `Start` until its worker says that it is gone, and holds its devices for just as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xi_core.cluster import members as placing
from xi_core.cluster.launches import Action, LaunchEntry, Replica, Start, Stop, Wanted, differences
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.placement import Placement, PlacementRequest, Rejection, Scheduler
from xi_core.errors import Conflict, ModelNotFound, NoPlacement

LEASE = 1.5
"""Seconds for which a worker's word holds after its link went down."""
RESTARTS, WINDOW, BACKOFF = 3, 60.0, 0.5
"""A replica is restarted so many times within the window, in seconds; before the first restart comes this pause, doubled each time."""
KEPT = 600.0
"""Seconds for which an ended launch is remembered: for its reason to be read, and for a worker that comes back with replicas of it."""


class Lifecycle:
    """All launches of a cluster. Times are in seconds of any steady clock."""

    def __init__(self, scheduler: Scheduler, epoch: str, *, launch_timeout: float, grace: float, settled_at: float = 0.0) -> None:
        """`epoch` makes incarnations unique over supervisors; before `settled_at` nothing is placed: workers may report it yet."""
        self.members: dict[str, Member] = {}
        self._launches: dict[str, LaunchEntry] = {}
        self._scheduler = scheduler
        self._epoch, self._lives = epoch, 0
        self._launch_timeout, self._grace, self._settled_at = launch_timeout, grace, settled_at

    # ---- reading --------------------------------------------------------------------------------

    def find(self, uid: str) -> LaunchEntry | None:
        """The launch of this uid that users can see."""
        launch = self._launches.get(uid)
        return launch if launch is not None and launch.listed else None

    def listed(self) -> list[LaunchEntry]:
        """All launches that users can see, oldest first."""
        return [launch for launch in self._launches.values() if launch.listed]

    def has_live(self, uid: str) -> bool:
        """Whether any process of this launch may still exist."""
        launch = self._launches.get(uid)
        return launch is not None and bool(launch.live)

    def next_wake(self) -> float | None:
        """When `tick` has something to do next."""
        times: list[float] = []
        for launch, replica in self._replicas():
            if replica.lost_at is not None:
                times.append(replica.lost_at + 2 * LEASE)
            if not launch.end and not replica.live and replica.start_at is not None:
                times.append(max(replica.start_at, self._settled_at))
        for launch in self._launches.values():
            if launch.end:
                times.append(launch.ended_at + KEPT)
            elif launch.deadline is not None:
                times.append(launch.deadline)
        return min(times, default=None)

    # ---- events ---------------------------------------------------------------------------------

    def accept(self, now: float, wanted: Wanted) -> list[Action]:
        """A launch is asked for. The same spec again is the same launch: nothing happens.

        Raises `Conflict` where the uid is taken by another spec, or by a launch whose processes aren't gone yet; `NoPlacement`.
        """
        before = self._launches.get(wanted.uid)
        if before is not None and not before.end:
            if before.wanted.spec == wanted.spec:
                return []
            raise Conflict(
                f"'{wanted.uid}' is launched already with another spec ({differences(before.wanted.spec, wanted.spec)} differs); "
                f"terminate it first, or choose another uid",
                param="model_uid",
            )
        if before is not None and before.live:
            raise Conflict(f"'{wanted.uid}' is still stopping; try again in a moment", param="model_uid", retry_after=1.0)
        replicas = [Replica(replica_id=f"{wanted.uid}-{n}", start_at=now) for n in range(wanted.spec.replica)]
        launch = LaunchEntry(wanted=wanted, replicas=replicas, deadline=now + self._launch_timeout)
        # A dict keeps the place of a key that is set again; this launch is new, so it goes to the end.
        self._launches.pop(wanted.uid, None)
        self._launches[wanted.uid] = launch
        if now < self._settled_at:
            return []
        actions: list[Action] = []
        for replica in replicas:
            started = self._start(now, launch, replica)
            if isinstance(started, Rejection):
                del self._launches[wanted.uid]
                where = f"replica {len(actions) + 1} of {len(replicas)} of " if len(replicas) > 1 else ""
                raise NoPlacement(f"no place for {where}'{wanted.uid}': {placing.explain(started)}")
            actions.append(started)
        return actions

    def terminate(self, now: float, uid: str) -> list[Action]:
        """A launch is not wanted any more; `has_live` tells when it is gone. Raises `ModelNotFound`."""
        launch = self.find(uid)
        if launch is None:
            raise ModelNotFound(
                f"no model '{uid}' is launched; launched: {', '.join(e.uid for e in self.listed()) or 'none'}", param="model_uid"
            )
        if launch.end:
            launch.end = "STOPPED"
            return []
        launch.end, launch.ended_at = ("STOPPED" if launch.was_ready else "CANCELLED"), now
        launch.error = None if launch.was_ready else "terminated before it was ready"
        return launch.stops(self._grace if launch.was_ready else 0.0)

    def worker_joined(self, now: float, member: Member, records: Iterable[ReplicaRecord]) -> list[Action]:
        """A worker registered, for the first time or again, and told all replicas that it runs, or that failed while it was alone."""
        self.members[member.name] = member
        actions: list[Action] = []
        reported: set[str] = set()
        for record in records:
            reported.add(record.plan.incarnation)
            actions += self._adopt(now, member, record)
        for launch, replica in list(self._replicas()):
            if replica.live and replica.worker == member.name and replica.incarnation not in reported:
                replica.clear()
                replica.stage = f"worker {member.name} started anew"
                launch.open_until(now + self._launch_timeout)
        return actions + self._start_due(now)

    def worker_left(self, now: float, worker: str) -> list[Action]:
        """A worker's link went down. What it runs goes on; it has two leases to come back."""
        member = self.members.get(worker)
        if member is not None:
            member.present = False
        for launch, replica in self._replicas():
            if replica.live and replica.worker == worker and replica.lost_at is None:
                replica.lost_at = now
                launch.open_until(now + self._launch_timeout)
        return []

    def worker_leaving(self, worker: str) -> list[Action]:
        """A worker was told to stop. It takes no more replicas; those that it has end one by one, and wait for another worker."""
        member = self.members.get(worker)
        if member is not None:
            member.present, member.leaving = False, True
        return []

    def replica_updated(self, now: float, worker: str, record: ReplicaRecord) -> list[Action]:
        """A worker told how one of its replicas is."""
        found = self._by_life(record.plan.incarnation)
        if found is None:
            return _refused(worker, record)
        found[0].take(found[1], record, now + self._launch_timeout)
        return []

    def replica_gone(
        self, now: float, incarnation: str, error: str | None = None, final: bool = False, code: str | None = None
    ) -> list[Action]:
        """A life of a replica has ended. `final`: it could not be loaded and said why, so that trying again is of no use."""
        found = self._by_life(incarnation)
        if found is None:
            return []
        launch, replica = found
        if launch.end:
            replica.clear()
            replica.state = launch.state
            return self._start_due(now)
        host = self.members.get(replica.worker)
        if host is not None and host.leaving:
            replica.clear()
            replica.stage = f"worker {host.name} was stopped"
            launch.open_until(now + self._launch_timeout)
            return self._start_due(now)
        if final and not launch.was_ready and not replica.restarts:
            launch.error_code = code
        actions = self._died(now, launch, replica, error or "it ended without a word", final)
        return actions + self._start_due(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        for launch in list(self._launches.values()):
            if launch.end:
                if now >= launch.ended_at + KEPT and not launch.live:
                    del self._launches[launch.uid]
            elif launch.deadline is not None and now >= launch.deadline:
                actions += _fail(now, launch, f"not ready within its time; {_hindrance(launch)}")
        for launch, replica in list(self._replicas()):
            if replica.lost_at is not None and now >= replica.lost_at + 2 * LEASE:
                self._expire(now, launch, replica)
        return actions + self._start_due(now)

    # ---- inside ---------------------------------------------------------------------------------

    def _replicas(self) -> Iterator[tuple[LaunchEntry, Replica]]:
        for launch in self._launches.values():
            for replica in launch.replicas:
                yield launch, replica

    def _by_life(self, incarnation: str) -> tuple[LaunchEntry, Replica] | None:
        return next(((launch, r) for launch, r in self._replicas() if incarnation and r.incarnation == incarnation), None)

    def _start(self, now: float, launch: LaunchEntry, replica: Replica) -> Start | Rejection:
        wanted = launch.wanted
        decision = self._place(wanted)
        if isinstance(decision, Rejection):
            return decision
        self._lives += 1
        replica.incarnation, replica.starts = f"{self._epoch}-{self._lives}", replica.starts + 1
        replica.worker, replica.devices = decision.worker, decision.devices
        replica.start_at, replica.stage = None, "placed"
        left = self._launch_timeout if launch.deadline is None else launch.deadline - now
        return Start(replica.worker, wanted.uid, replica.replica_id, replica.incarnation, replica.devices, max(0.0, left))

    def _place(self, wanted: Wanted) -> Placement | Rejection:
        pool = None if wanted.spec.gpu_idx is None else tuple(wanted.spec.gpu_idx)
        request = PlacementRequest(uid=wanted.uid, engine=wanted.engine, n_gpu=wanted.n_gpu, gpu_idx=pool)
        return placing.place(self._scheduler, request, placing.view(self.members.values(), (r for _, r in self._replicas())))

    def _start_due(self, now: float) -> list[Action]:
        """Start what waits, as far as there is room; what finds none waits for the next event."""
        actions: list[Action] = []
        for launch, replica in list(self._replicas()):
            if launch.end or replica.live or (replica.start_at is not None and replica.start_at > now):
                continue
            if now < self._settled_at:
                replica.start_at = self._settled_at
                continue
            started = self._start(now, launch, replica)
            if isinstance(started, Start):
                actions.append(started)
            else:
                replica.start_at, replica.stage = None, f"waiting: {placing.explain(started)}"
        return actions

    def _died(self, now: float, launch: LaunchEntry, replica: Replica, error: str, final: bool) -> list[Action]:
        replica.clear()
        replica.error, replica.stage = error, "restarting"
        replica.deaths = [at for at in replica.deaths if now - at < WINDOW] + [now]
        launch.open_until(now + self._launch_timeout)
        if final and not launch.was_ready and not replica.restarts:
            return _fail(now, launch, error)
        if len(replica.deaths) > RESTARTS:
            return _fail(
                now, launch, f"replica {replica.replica_id} ended {len(replica.deaths)} times within {WINDOW:g} s; the last time: {error}"
            )
        replica.start_at = now + BACKOFF * 2 ** (len(replica.deaths) - 1)
        return []

    def _expire(self, now: float, launch: LaunchEntry, replica: Replica) -> None:
        """Its worker stayed away. Move it if there is a place elsewhere; if not, it may well go on serving, and is asked for again."""
        if launch.end or not isinstance(self._place(launch.wanted), Rejection):
            replica.clear()
        else:
            replica.lost_at, replica.stage = now, f"worker {replica.worker} is away"

    def _adopt(self, now: float, member: Member, record: ReplicaRecord) -> list[Action]:
        """Take over a replica that a worker reports, unless it isn't wanted (any more), or another copy took its place."""
        plan, failed = record.plan, record.status.state == "FAILED"
        launch = self._launches.get(plan.uid)
        if launch is None and record.status.state != "STOPPING":
            launch = self._launches[plan.uid] = _adopted(now + self._launch_timeout, record)
        replica = next((r for r in launch.replicas if r.replica_id == plan.replica_id), None) if launch else None
        if launch is None or replica is None or launch.wanted.spec != record.spec:
            return _refused(member.name, record)
        if replica.incarnation != plan.incarnation:
            if launch.end or replica.live:
                return _refused(member.name, record)
            replica.incarnation, replica.worker, replica.devices = plan.incarnation, member.name, tuple(plan.devices)
            replica.starts, replica.start_at = record.status.restarts + 1, None
        if failed:
            return self.replica_gone(now, plan.incarnation, record.status.error)
        launch.take(replica, record, now + self._launch_timeout)
        return _refused(member.name, record) if launch.end else []


def _adopted(deadline: float, record: ReplicaRecord) -> LaunchEntry:
    """A launch as a worker's record tells it, to a supervisor that has forgotten it."""
    plan, spec = record.plan, record.spec
    wanted = Wanted(uid=plan.uid, spec=spec, model=record.model, engine=plan.engine.name, n_gpu=len(plan.devices), created=record.created)
    replicas = [Replica(replica_id=f"{plan.uid}-{n}") for n in range(spec.replica)]
    return LaunchEntry(wanted=wanted, replicas=replicas, deadline=deadline)


def _refused(worker: str, record: ReplicaRecord) -> list[Action]:
    if record.status.state == "FAILED":
        return []
    return [Stop(worker, record.plan.replica_id, record.plan.incarnation, 0.0)]


def _fail(now: float, launch: LaunchEntry, error: str) -> list[Action]:
    launch.end, launch.ended_at, launch.error = "FAILED", now, error
    return launch.stops(0.0)


def _hindrance(launch: LaunchEntry) -> str:
    """What the replicas that aren't ready were doing or waiting for."""
    parts = [f"{r.replica_id}: {r.error or r.stage or r.state}" for r in launch.replicas if r.state != "READY" or r.lost_at is not None]
    return "; ".join(parts)
