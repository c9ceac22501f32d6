"""The ledger: which ranks are on which worker and hold which devices, by life and by worker, and the views that schedulers get of it.

Part of the pure core (`lifecycle`). It is kept at each change, so that an event costs what it touches, and not what the cluster runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from xi_core.cluster.devices import Device
from xi_core.cluster.launches import LaunchEntry
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.placement import ClusterView, DeviceView, UnreadyWorker, WorkerView
from xi_core.cluster.replicas import Rank, Replica, rank_of

Key = tuple[str, int]
"""An incarnation and the number of a rank."""
Held = tuple[LaunchEntry, Replica, Rank]
REMEMBERED = 512
"""Lives that are known to be over. Of launches that are over the names are known besides; more lives would only be memory that fills
slowly."""


class Promise(Protocol):
    """What was promised to a replica: of a `Wanted` or a `LaunchPlan`."""

    @property
    def memory(self) -> int: ...
    @property
    def memory_share(self) -> float: ...
    @property
    def exclusive(self) -> bool: ...


class Ledger:
    """Members, lives, and who holds what."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.drains: dict[str, float] = {}
        """Workers that are drained, here or away: nothing new is placed there, and what they run moves elsewhere. By name: when what is
        left ends though nothing has taken its place."""
        self.expected: set[str] = set()
        """Workers on the list of those who may join, which haven't come since this supervisor started."""
        self._lives: dict[str, tuple[LaunchEntry, Replica]] = {}
        self._promises: dict[str, Promise] = {}
        """By life, of launches whose replicas have configurations of their own: a replica's place may be another's later."""
        self._ranks: dict[str, dict[Key, Held]] = {}
        self._strays: dict[str, dict[Key, ReplicaRecord]] = {}
        """Processes on a worker that no launch wants, and that have been told to end: until then they hold their devices."""
        self._over: dict[str, None] = {}
        self._views: dict[str, WorkerView] = {}
        self._names: list[str] = []

    # ---- keeping --------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        """A worker is there, anew. What it reports comes next."""
        if member.name not in self.members:
            self._names = sorted([*self._names, member.name])
        self.members[member.name] = member
        self.expected.discard(member.name)
        self._strays.pop(member.name, None)
        self._views.pop(member.name, None)

    def leave(self, name: str) -> None:
        """A worker won't come again, and nothing that it ran counts any more."""
        del self.members[name]
        self._names = sorted(self.members)
        for of_workers in (self._strays, self._views, self._ranks):
            of_workers.pop(name, None)

    def devices_changed(self, member: Member, devices: list[Device]) -> None:
        """A worker's devices are like this now. All workers tell that each second, so that it is seen to here, and not when one places."""
        member.devices = devices
        self._views[member.name] = self._worker_view(member, None)

    def begin(self, launch: LaunchEntry, replica: Replica, promise: Promise | None = None) -> None:
        """A life begins, or is adopted: then `promise` is what was promised to it."""
        self._lives[replica.incarnation] = launch, replica
        if launch.wanted.spec.replica_config:
            self._promises[replica.incarnation] = promise or launch.wanted_of(replica.replica_id)
        for number, rank in enumerate(replica.ranks):
            self._ranks.setdefault(rank.worker, {})[replica.incarnation, number] = launch, replica, rank
            self._views.pop(rank.worker, None)

    def drop(self, replica: Replica, rank: Rank) -> None:
        """Nothing is left of a rank."""
        number = next(number for number, known in enumerate(replica.ranks) if known is rank)
        self._ranks.get(rank.worker, {}).pop((replica.incarnation, number), None)
        self._views.pop(rank.worker, None)

    def end(self, replica: Replica) -> None:
        """Nothing is left of a life. To be called before the replica forgets it."""
        for rank in replica.ranks:
            self.drop(replica, rank)
        self._promises.pop(replica.incarnation, None)
        if self._lives.pop(replica.incarnation, None) is not None:
            self._over[replica.incarnation] = None
            if len(self._over) > REMEMBERED:
                del self._over[next(iter(self._over))]

    def changed(self, replica: Replica) -> None:
        """A replica loads or is READY: what its devices have free is another now."""
        for rank in replica.ranks:
            self._views.pop(rank.worker, None)

    def stray(self, worker: str, record: ReplicaRecord) -> None:
        """A process runs on a worker that no launch wants: it holds its devices until it is gone."""
        self._strays.setdefault(worker, {})[record.plan.incarnation, rank_of(record)] = record
        self._views.pop(worker, None)

    def stray_gone(self, incarnation: str, rank: int) -> bool:
        """Such a process has ended. False where there was none."""
        for worker, strays in self._strays.items():
            if strays.pop((incarnation, rank), None) is not None:
                self._views.pop(worker, None)
                return True
        return False

    # ---- looking --------------------------------------------------------------------------------

    def life(self, incarnation: str) -> tuple[LaunchEntry, Replica] | None:
        """The replica whose present life this is."""
        return self._lives.get(incarnation)

    def is_over(self, incarnation: str) -> bool:
        """Whether this life was given up: a worker that was away may still report what is left of it."""
        return incarnation in self._over

    def on(self, worker: str) -> list[tuple[int, LaunchEntry, Replica, Rank]]:
        """The ranks of which a process may exist on a worker, each with its number."""
        return [(number, *held) for (_, number), held in self._ranks.get(worker, {}).items()]

    def view(self, without: Replica | None = None) -> ClusterView:
        """The workers that may take replicas, by name, with what is held of each; what `without` holds counts as free."""
        apart = {rank.worker for rank in without.ranks} if without is not None else set()
        return ClusterView(
            workers=tuple(
                self._worker_view(member, without) if name in apart else self._cached(member)
                for name in self._names
                if (member := self.members[name]).present and name not in self.drains
            ),
            unready=self._unready(),
        )

    def view_of(self, name: str) -> WorkerView | None:
        """A worker and its devices as placement sees them, or would if it might take replicas."""
        member = self.members.get(name)
        return self._cached(member) if member is not None else None

    def _unready(self) -> tuple[UnreadyWorker, ...]:
        """The workers of the cluster that may take no replicas now: drained, away, or listed and not back yet."""
        here = self.members
        absent = [name for name in {*self.drains, *self.expected} if name not in here] if self.drains or self.expected else []
        names = sorted([*(name for name in self._names if not here[name].present or name in self.drains), *absent])
        return tuple(_unready_worker(name, here.get(name), name in self.drains) for name in names)

    def _cached(self, member: Member) -> WorkerView:
        found = self._views.get(member.name)
        if found is None:
            found = self._views[member.name] = self._worker_view(member, None)
        return found

    def _worker_view(self, member: Member, without: Replica | None) -> WorkerView:
        by_device: dict[str, list[tuple[Promise, bool]]] = {}
        replicas = 0
        for devices, promise, ready in self._held(member.name, without):
            replicas += 1
            for name in devices:
                by_device.setdefault(name, []).append((promise, ready))
        return WorkerView(
            worker=member.name,
            devices=tuple(_device_view(member.name, device, by_device.get(device.id, [])) for device in member.devices),
            replicas=replicas,
            engines=member.engines,
            address=member.address,
            memory=member.memory,
        )

    def _held(self, worker: str, without: Replica | None) -> Iterator[tuple[tuple[str, ...], Promise, bool]]:
        """What each process on a worker holds, what was promised to it, and whether it has loaded."""
        for launch, replica, rank in self._ranks.get(worker, {}).values():
            if replica is not without:
                yield rank.devices, self._promises.get(replica.incarnation, launch.wanted), replica.state == "READY"
        for record in self._strays.get(worker, {}).values():
            yield tuple(record.plan.devices), record.plan, record.status.state in ("READY", "STOPPING")


def _unready_worker(name: str, member: Member | None, drained: bool) -> UnreadyWorker:
    away = member is None or not member.present
    if drained:
        reason = f"is drained{' and away' if away else ''}, and takes nothing new until `xi drain {name} --undo`"
    elif member is None:
        reason = "is away: it may join, and hasn't come since the supervisor started"
    else:
        reason = "was stopped, and may be started again" if member.leaving else "is away, and may come back"
    if member is None:
        return UnreadyWorker(worker=name, reason=reason)
    return UnreadyWorker(worker=name, reason=reason, address=member.address, devices=tuple(device.id for device in member.devices))


def _device_view(worker: str, device: Device, held: list[tuple[Promise, bool]]) -> DeviceView:
    """A probe sees the memory of replicas that have loaded; what others were promised comes off what it says is free."""
    if not held:
        return DeviceView(
            worker=worker,
            device=device.id,
            kind=device.kind,
            memory=device.memory,
            memory_free=min(device.memory_free, device.memory),
            utilisation=device.utilisation,
            domain=device.domain,
        )
    needs = [(max(promise.memory, round(promise.memory_share * device.memory)), ready) for promise, ready in held]
    loading = sum(need for need, ready in needs if not ready)
    return DeviceView(
        worker=worker,
        device=device.id,
        kind=device.kind,
        memory=device.memory,
        memory_free=min(device.memory_free - loading, device.memory - sum(need for need, _ in needs)),
        utilisation=device.utilisation,
        replicas=len(held),
        domain=device.domain,
        exclusive=any(promise.exclusive for promise, _ in held),
    )
