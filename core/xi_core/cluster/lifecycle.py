"""Lifecycle: what happens to launches and their replicas. Pure: events in, actions out; no I/O and no clock (`now` comes with each event).

Its steps are in `state`: how a launch begins is in `starting`, how reports are taken over in `adoption`, what time brings about in
`deadlines`.

The supervisor feeds it and carries out the `Start` and `Stop` actions that it answers. What runs is known from workers only: a
replica is live from its `Start` until its workers say that every rank is gone, and holds its devices for just as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from functools import partial

import msgspec

from xi_core.cluster import adoption, deadlines, starting
from xi_core.cluster.deadlines import KEPT, LEASE
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import LaunchEntry, Wanted, differences
from xi_core.cluster.lora_choice import check_taken
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.placement import Placement, Rejection, Scheduler, WorkerView
from xi_core.cluster.replicas import BACKOFF, RESTARTS, WINDOW, Action, Ending, Rank, Replica, rank_of
from xi_core.cluster.state import ClusterState
from xi_core.errors import Conflict, InvalidRequest, NoPlacement, WorkerNotFound

__all__ = ["BACKOFF", "KEPT", "LEASE", "RESTARTS", "WINDOW", "Lifecycle"]


class Lifecycle:
    """All launches of a cluster. Times are in seconds of any steady clock."""

    def __init__(
        self,
        scheduler: Scheduler,
        epoch: str,
        *,
        launch_timeout: float,
        grace: float,
        settled_at: float = 0.0,
        schedulers: Mapping[str, Scheduler] | None = None,
        drains: Mapping[str, float] | None = None,
        ended: Set[tuple[str, int]] = frozenset(),
        expected: Iterable[str] = (),
    ) -> None:
        """`epoch` makes incarnations unique over supervisors; before `settled_at` nothing is placed: workers may report it yet.

        `scheduler` places launches that don't name one of `schedulers`. `drains`: workers that were drained in a former life of this
        supervisor, as in `self.drains`. `ended`: launches that aren't taken over from workers, each by its uid and when it was created.
        `expected`: workers that may join.
        """
        self._state = ClusterState(
            {**(schedulers or {}), "": scheduler},
            epoch,
            launch_timeout=launch_timeout,
            grace=grace,
            settled_at=settled_at,
            ended=ended,
            expected=expected,
        )
        self.members = self._state.ledger.members
        """To be read only: the workers that have joined, by name."""
        self.drains = self._state.ledger.drains
        """To be read only: the workers that are drained, here or away, and when what is left on each ends."""
        self.drains.update(drains or {})
        self.expected = self._state.ledger.expected
        """To be read only: the workers that may join, and haven't come since this supervisor started."""

    # ---- reading --------------------------------------------------------------------------------

    def find(self, uid: str) -> LaunchEntry | None:
        """The launch of this uid that users can see."""
        return self._state.launches.find(uid)

    def known(self, uid: str) -> LaunchEntry:
        """As `find`. Raises `ModelNotFound`."""
        return self._state.launches.known(uid)

    def listed(self) -> list[LaunchEntry]:
        """All launches that users can see, oldest first."""
        return self._state.launches.listed()

    def wanted(self) -> list[Wanted]:
        """All launches that are to run, oldest first."""
        return [launch.wanted for launch in self._state.launches.values() if not launch.end]

    def changes(self) -> dict[str, LaunchEntry | None]:
        """By uid, the launches that have changed since this was asked last; None for what users can't see any more."""
        return {uid: self.find(uid) for uid in self._state.touched.routes()}

    def has_live(self, uid: str) -> bool:
        """Whether any process of this launch may still exist."""
        launch = self._state.launches.get(uid)
        return launch is not None and bool(launch.live)

    def on(self, worker: str) -> list[tuple[Replica, Rank]]:
        """The ranks of which a process may exist on this worker, each with its replica."""
        return [(replica, rank) for _, _, replica, rank in self._state.ledger.on(worker)]

    def view_of(self, worker: str) -> WorkerView | None:
        """A worker that has joined and its devices, as placement sees them."""
        return self._state.ledger.view_of(worker)

    def next_wake(self) -> float | None:
        """When `tick` has something to do next."""
        return self._state.touched.next_wake(partial(deadlines.wake_of, self._state))

    def explain(self, wanted: Wanted) -> list[Placement | Rejection]:
        """Where each replica of a launch would go now, and why not elsewhere. Nothing is reserved; it ends at the first rejection.

        Raises `WorkerNotFound`.
        """
        return starting.explain(self._state, wanted)

    # ---- what users ask for ---------------------------------------------------------------------

    def accept(self, now: float, wanted: Wanted) -> list[Action]:
        """A launch is asked for. The same spec again is the same launch: nothing happens.

        Raises `Conflict` where the uid is taken by another spec, or by a launch whose processes aren't gone yet, or where a name is that of
        another launch or of its LoRA modules; `WorkerNotFound`; `NoPlacement`.
        """
        before = self._state.launches.get(wanted.uid)
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
        check_taken(wanted.spec, self.listed())
        if now >= self._state.settled_at:
            starting.check_workers(self._state, wanted)
        launch = starting.enter(self._state, now, msgspec.structs.replace(wanted, was_ready=False))
        if now < self._state.settled_at:
            return []
        try:
            return starting.start_all(self._state, now, launch, launch.replicas)
        except NoPlacement:
            self._state.forget(launch)
            if before is not None:  # its reason is still of interest
                self._state.enter(before)
            raise

    def restore(self, now: float, wanted: Wanted) -> None:
        """A launch of a former life of this supervisor. Its replicas are adopted as workers report them, or started when it has settled.

        One that was READY then stays as safe as it was: what serves of it isn't ended because the rest doesn't come back.
        """
        if wanted.uid not in self._state.launches:
            starting.enter(self._state, now, wanted)

    def terminate(self, now: float, uid: str) -> list[Action]:
        """A launch is not wanted any more; `has_live` tells when it is gone. Raises `ModelNotFound`."""
        launch = self._state.launches.known(uid)
        self._state.touched.touch(launch)
        if launch.end:
            launch.end = "STOPPED"
            return []
        launch.end, launch.ended_at = ("STOPPED" if launch.was_ready else "CANCELLED"), now
        launch.error = None if launch.was_ready else "terminated before it was ready"
        return launch.stops(self._state.grace if launch.was_ready else 0.0)

    def scale(self, now: float, uid: str, count: int) -> list[Action]:
        """Have so many replicas of a launch. Those that go finish what they run.

        Raises `ModelNotFound`, `InvalidRequest`, `Conflict` for a launch that has ended, and `NoPlacement` where nothing changes then.
        """
        launch = self._state.launches.known(uid)
        if launch.end:
            raise Conflict(f"'{uid}' is {launch.state}; launch it again to serve it", param="model_uid")
        if count < 1:
            raise InvalidRequest(f"replica: {count} is too few; to serve none, terminate '{uid}'", param="replica")
        if launch.wanted.spec.replica_config:
            raise Conflict(
                f"each replica of '{uid}' has a place of its own (replica_config); launch it anew to change them", param="replica"
            )
        kept = [r for r in launch.replicas if r.wanted]
        actions: list[Action] = []
        if count > len(kept):
            new = [Replica(replica_id=i, start_at=now) for i in launch.free_ids(count - len(kept))]
            launch.replicas += new
            self._state.touched.touch(launch)
            launch.open_until(now + self._state.launch_timeout)
            try:
                actions += starting.start_all(self._state, now, launch, new) if now >= self._state.settled_at else []
            except NoPlacement:
                launch.replicas = [r for r in launch.replicas if r not in new]
                launch.look(now + self._state.launch_timeout)
                raise
        else:
            for replica in sorted(kept, key=lambda r: r.told == "READY")[: len(kept) - count]:
                actions += self._state.dismiss(launch, replica)
        launch.wanted = msgspec.structs.replace(launch.wanted, spec=msgspec.structs.replace(launch.wanted.spec, replica=count))
        launch.look(now + self._state.launch_timeout)
        return actions

    def drain(self, now: float, worker: str, seconds: float) -> list[Action]:
        """Move everything from a worker to others, each replica once its replacement is READY; what is left then ends after `seconds`.

        Of one that is drained already this sets another time.

        Raises `WorkerNotFound`.
        """
        _require(worker, self.members.keys() | self.drains.keys() | self.expected)
        self.drains[worker] = now + seconds
        for _, launch, replica, _ in self._state.ledger.on(worker):
            if replica.move_by is not None:  # of what moves already the time is another now
                self._state.stay(launch, replica)
        return self._state.move_all(worker) + self._state.start_due(now)

    def undrain(self, now: float, worker: str) -> list[Action]:
        """Let a worker take replicas again. What has begun to move moves on, however long that takes. Raises `WorkerNotFound`."""
        _require(worker, self.members.keys() | self.drains.keys() | self.expected)
        self.drains.pop(worker, None)
        for _, launch, replica, _ in self._state.ledger.on(worker):
            self._state.stay(launch, replica)
        return self._state.start_due(now)

    # ---- what workers tell ----------------------------------------------------------------------

    def worker_joined(self, now: float, member: Member, records: Iterable[ReplicaRecord]) -> list[Action]:
        """A worker registered, for the first time or again, and told all replicas that it runs, or that failed while it was alone."""
        self._state.ledger.join(member)
        actions: list[Action] = []
        reported: set[tuple[str, int]] = set()
        for record in records:
            reported.add((record.plan.incarnation, rank_of(record)))
            actions += adoption.adopt(self._state, now, member, record)
        for number, launch, replica, rank in self._state.ledger.on(member.name):
            if (replica.incarnation, number) not in reported:
                why = Ending(f"worker {member.name} started anew", fault=False)
                actions += self._state.lose(now, launch, replica, [rank], why)
        for drained in self.drains:  # a rank of what was adopted may be there
            actions += self._state.move_all(drained)
        return actions + self._state.start_due(now)

    def worker_beat(self, now: float, worker: str, devices: list[Device]) -> list[Action]:
        """A worker told how its devices are now."""
        member = self.members.get(worker)
        if member is None or member.devices == devices:
            return []
        roomier = member.gains(devices)
        self._state.ledger.devices_changed(member, devices)
        return self._state.start_due(now) if roomier else []

    def worker_left(self, now: float, worker: str) -> list[Action]:
        """A worker's link went down. What it runs goes on; it has two leases to come back."""
        member = self.members.get(worker)
        if member is not None:
            member.present = False
        for _, launch, _, rank in self._state.ledger.on(worker):
            if rank.lost_at is None:
                rank.lost_at = now
                launch.open_until(now + self._state.launch_timeout)
                self._state.touched.touch(launch)
        return []

    def worker_leaving(self, worker: str) -> list[Action]:
        """A worker was told to stop. It takes no more replicas; those that it has end one by one, and wait for another worker."""
        member = self.members.get(worker)
        if member is not None:
            member.present, member.leaving = False, True
        return []

    def worker_removed(self, now: float, worker: str) -> list[Action]:
        """A worker may not come again. What it runs is lost now, and placed elsewhere. Another one of its name begins anew, undrained."""
        actions: list[Action] = []
        why = Ending(f"worker {worker} was removed from the cluster", fault=False)
        for _, launch, replica, rank in self._state.ledger.on(worker):
            actions += self._state.lose(now, launch, replica, [rank], why)
        self.drains.pop(worker, None)
        self._state.ledger.expected.discard(worker)
        if worker in self.members:
            self._state.ledger.leave(worker)
        return actions + self._state.start_due(now)

    def replica_updated(self, now: float, worker: str, record: ReplicaRecord) -> list[Action]:
        """A worker told how one of its replicas is."""
        found = self._state.by_life(record.plan.incarnation)
        if found is None or rank_of(record) >= len(found[1].ranks) or found[1].ranks[rank_of(record)].gone:
            return self._state.refuse(worker, record)
        before = found[1].state
        actions = adoption.took(self._state, now, *found, record)
        loaded = found[1].state == "READY" != before  # what it was promised beyond what it takes is free again
        return actions + self._state.start_due(now) if loaded else actions

    def replica_gone(
        self, now: float, incarnation: str, error: str | None = None, final: bool = False, code: str | None = None, rank: int = 0
    ) -> list[Action]:
        """A rank of a life has ended. `final`: it could not be loaded and said why, so that trying again is of no use."""
        found = self._state.by_life(incarnation)
        if found is None or rank >= len(found[1].ranks) or found[1].ranks[rank].gone:
            return self._state.room_made(now, incarnation, rank)
        return self._state.ended(now, *found, rank, error, final, code) + self._state.start_due(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        return deadlines.tick(self._state, now)


def _require(worker: str, known: Iterable[str]) -> None:
    """`known`: the members, and those that are drained or may join, and haven't come yet since this supervisor started."""
    if worker not in known:
        raise WorkerNotFound(f"there is no worker '{worker}'; workers: {', '.join(sorted(known)) or 'none'}", param="worker")
