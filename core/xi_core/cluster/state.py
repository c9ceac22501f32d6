"""The state of a cluster, as its supervisor's pure core keeps it, and the steps that events are made of. See `lifecycle`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Set

from xi_core.cluster import members as placing
from xi_core.cluster.launches import LaunchEntry, Launches
from xi_core.cluster.ledger import Ledger
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.over import OverLaunches
from xi_core.cluster.placement import Placement, Rejection, Scheduler
from xi_core.cluster.replicas import BACKOFF, RESTARTS, WINDOW, Action, Ending, Rank, Replica, Start, Stop, rank_of
from xi_core.cluster.touched import Touched


class ClusterState:
    """Members and launches. Times are in seconds of any steady clock."""

    def __init__(
        self,
        schedulers: Mapping[str, Scheduler],
        epoch: str,
        *,
        launch_timeout: float,
        grace: float,
        settled_at: float = 0.0,
        ended: Set[tuple[str, int]] = frozenset(),
        expected: Iterable[str] = (),
    ) -> None:
        """`schedulers` by name; the one named "" places launches that name none. `ended` is as in `Desired`, `expected` as in `Ledger`."""
        self.ledger = Ledger()
        self.ledger.expected.update(expected)
        self.touched = Touched()
        self.launches = Launches()
        self.launch_timeout, self.grace, self.settled_at = launch_timeout, grace, settled_at
        self.over = OverLaunches(ended)
        self._schedulers = schedulers
        self._epoch, self._lives = epoch, 0
        self._numbers = itertools.count(1)

    # ---- finding --------------------------------------------------------------------------------

    def replicas(self) -> Iterator[tuple[LaunchEntry, Replica]]:
        """Every replica, with its launch."""
        for launch in self.launches.values():
            for replica in launch.replicas:
                yield launch, replica

    def by_life(self, incarnation: str) -> tuple[LaunchEntry, Replica] | None:
        """The replica whose present life this is."""
        return self.ledger.life(incarnation)

    def enter(self, launch: LaunchEntry) -> None:
        """A launch begins. Its uid may have been another's before."""
        # A dict keeps the place of a key that is set again; this launch is new, so it goes to the end.
        self.launches.pop(launch.uid, None)
        self.launches[launch.uid] = launch
        launch.number = next(self._numbers)
        self.touched.touch(launch)

    def forget(self, launch: LaunchEntry) -> None:
        """Nothing is to be known of a launch any more."""
        del self.launches[launch.uid]
        self.touched.touch(launch)

    def place(self, launch: LaunchEntry, replica: Replica, *, explain: bool = False) -> Placement | Rejection:
        """Where a new life of this replica would go now; what its present one holds counts as free. `explain`: with every verdict."""
        others = [r for r in launch.replicas if r is not replica]
        request = launch.wanted.request(launch.number_of(replica), others, explain=explain)
        name = launch.wanted.spec.scheduler or ""
        if name not in self._schedulers:  # a worker has told of a launch of former days
            return Rejection(reason=f"the scheduler '{name}' is not installed with the supervisor")
        return placing.place(self._schedulers[name], request, self.ledger.view(without=replica))

    # ---- starting -------------------------------------------------------------------------------

    def start(self, now: float, launch: LaunchEntry, replica: Replica) -> Start | Rejection:
        """Begin a life of a replica that has none."""
        decision = self.place(launch, replica)
        if isinstance(decision, Rejection):
            return decision
        if launch.waits:
            launch.deadline = now + self.launch_timeout
        self._lives += 1
        replica.begin(f"{self._epoch}-{self._lives}", decision.assignments)
        self.ledger.begin(launch, replica)
        self.touched.touch(launch)
        left = self.launch_timeout if launch.deadline is None else launch.deadline - now
        return Start(
            launch.uid, replica.replica_id, replica.incarnation, decision.assignments, max(0.0, left), replica.restarts, replica.moves
        )

    def start_due(self, now: float) -> list[Action]:
        """Start what waits, as far as there is room; what finds none waits for the next event."""
        actions: list[Action] = []
        for launch in self.touched.waiting(self.launches):
            refused = ""
            for replica in list(launch.replicas):
                if replica.live or replica.leaving or (replica.start_at is not None and replica.start_at > now):
                    continue
                if now < self.settled_at:
                    replica.start_at = self.settled_at
                elif refused:  # what is asked for is the same
                    replica.start_at, replica.stage = None, refused
                elif isinstance(started := self.start(now, launch, replica), Start):
                    actions.append(started)
                else:
                    replica.start_at, replica.stage = None, f"waiting: {placing.explain(started)}"
                    refused = "" if launch.wanted.spec.replica_config else replica.stage
                    self.touched.touch(launch)
        return actions

    def room_made(self, now: float, incarnation: str, rank: int) -> list[Action]:
        """A process has ended that no launch wanted: others may take its place."""
        return self.start_due(now) if self.ledger.stray_gone(incarnation, rank) else []

    # ---- ending ---------------------------------------------------------------------------------

    def ended(
        self, now: float, launch: LaunchEntry, replica: Replica, rank: int, error: str | None, final: bool = False, code: str | None = None
    ) -> list[Action]:
        """A rank has ended, by the word of its worker."""
        ended = replica.ranks[rank]
        host = self.ledger.members.get(ended.worker)
        where = f"rank {rank} on {ended.worker}: " if len(replica.ranks) > 1 else ""
        if host is not None and host.leaving:
            why = Ending(f"worker {host.name} was stopped", fault=False)
        else:
            why = Ending(f"{where}{error or 'it ended without a word'}", final, code)
        return self.lose(now, launch, replica, [ended], why)

    def lose(self, now: float, launch: LaunchEntry, replica: Replica, ranks: list[Rank], why: Ending) -> list[Action]:
        """These ranks are gone. The rest of the life ends with them, and when nothing is left of it, the replica goes on as is due."""
        for rank in ranks:
            self.ledger.drop(replica, rank)
            rank.gone, rank.pid, rank.lost_at = True, None, None
        self.ledger.changed(replica)
        self.touched.touch(launch)
        if replica.ending is None and not launch.end and not replica.leaving:
            replica.ending = why
            replica.state, replica.stage = "PENDING", f"ending its other ranks: {why.error}"
            launch.open_until(now + self.launch_timeout)
            if not all(rank.gone for rank in replica.ranks):
                return replica.stops(0.0)
        if all(rank.gone for rank in replica.ranks):
            return self._concluded(now, launch, replica)
        served = replica.ending is None and any(rank is replica.ranks[0] for rank in ranks)
        return replica.stops(0.0) if served else []  # whatever grace the other ranks were given: rank 0 has finished what it ran

    def lose_absent(self, now: float, launch: LaunchEntry, replica: Replica, reporter: Member) -> list[Action]:
        """A life was adopted: its ranks on workers that are here, and have told before what they run, are gone."""
        here = [m.name for m in self.ledger.members.values() if m.present and m is not reporter]
        absent = [rank for rank in replica.ranks if rank.worker in here and not rank.gone]
        if not absent:
            return []
        return self.lose(now, launch, replica, absent, Ending(f"worker {absent[0].worker} doesn't run its rank", fault=False))

    def _concluded(self, now: float, launch: LaunchEntry, replica: Replica) -> list[Action]:
        """Nothing is left of this life."""
        why, moving = replica.ending, replica.move_by is not None
        self.ledger.end(replica)
        replica.clear()
        if replica.leaving:
            launch.replicas.remove(replica)
            launch.look(now + self.launch_timeout)
            return []
        if launch.end:
            replica.state = launch.end if launch.end != "STOPPED" else "STOPPING"
            return []
        if moving and self._hand_over(launch, replica):
            launch.look(now + self.launch_timeout)
            return []
        if why is None or not why.fault:
            replica.stage, replica.moves = why.error if why is not None else "", replica.moves + 1
            replica.deaths = []  # elsewhere it has its restarts again
            return []
        return self._died(now, launch, replica, why)

    def _died(self, now: float, launch: LaunchEntry, replica: Replica, why: Ending) -> list[Action]:
        # With an error it wasn't READY since: loading may take so long that four deaths never come within the window.
        in_a_row = replica.error is not None
        counted = replica.deaths if in_a_row else [at for at in replica.deaths if now - at < WINDOW]
        replica.deaths = [*counted[-RESTARTS:], now]
        replica.error, replica.stage = why.error, "restarting"
        if why.final and not launch.was_ready and not replica.restarts:
            launch.error_code = why.code
            return self.fail(now, launch, why.error)
        if replica.spent:
            if replica.replaces:
                launch.replicas.remove(replica)  # what it was to replace serves on
                launch.look(now + self.launch_timeout)
                return []
            if not launch.serves:
                when = f"within {WINDOW:g} s" if now - replica.deaths[0] < WINDOW else "without being READY between"
                often = f"replica {replica.replica_id} ended {len(replica.deaths)} times {when}"
                return self.fail(now, launch, f"{often}; the last time: {why.error}")
            replica.stage = f"ends again and again, tried every {WINDOW:g} s"
        replica.restarts += 1
        replica.start_at = now + (BACKOFF * 2 ** (len(replica.deaths) - 1) if not replica.spent else WINDOW)
        return []

    def begin_rest_anew(self, now: float, launch: LaunchEntry) -> list[Action]:
        """Its time is over, and a part of it serves, or all wait: it isn't ended for what can't be had, which is tried again and again."""
        launch.deadline = now + self.launch_timeout
        self.touched.touch(launch)
        actions: list[Action] = []
        for replica in launch.replicas:
            late = replica.live and replica.state != "READY" and replica.ending is None
            if late and not replica.leaving and replica.lost_at is None:
                actions += self.lose(now, launch, replica, [], Ending("it was not ready within its time"))
        return actions

    def fail(self, now: float, launch: LaunchEntry, error: str) -> list[Action]:
        """The launch can't be had."""
        launch.end, launch.ended_at, launch.error = "FAILED", now, error
        self.touched.touch(launch)
        return launch.stops(0.0)

    def dismiss(self, launch: LaunchEntry, replica: Replica) -> list[Action]:
        """This replica isn't wanted any more: it finishes what it runs, and takes nothing new. Nor is what was to take its place."""
        heir = launch.heir(replica)
        actions = self.dismiss(launch, heir) if heir is not None else []
        replica.leaving = True
        self.touched.touch(launch)
        if not replica.live:
            launch.replicas.remove(replica)
            return actions
        replica.state = "STOPPING"
        return actions + replica.stops(self.grace)

    # ---- moving ---------------------------------------------------------------------------------

    def move_all(self, worker: str) -> list[Action]:
        """Have others take the place of all that a worker runs which is being drained."""
        actions: list[Action] = []
        for _, launch, replica, _ in self.ledger.on(worker):
            if launch.end or replica.leaving:
                continue
            if replica.replaces:  # it was to take another's place here: one elsewhere must
                launch.replicas.append(Replica(replica_id=launch.free_id(), replaces=replica.replaces, start_at=0.0))
                replica.replaces = ""
                actions += self.dismiss(launch, replica)
            elif replica.move_by is None:
                self.move(launch, replica, self.ledger.drains[worker])
        return actions

    def move(self, launch: LaunchEntry, replica: Replica, by: float) -> None:
        """Have another replica take the place of this one, whose worker is being drained, before this one ends; at the latest at `by`."""
        replica.move_by = by
        if launch.heir(replica) is None:
            launch.replicas.append(Replica(replica_id=launch.free_id(), replaces=replica.replica_id, start_at=0.0))
        self.touched.touch(launch)

    def stay(self, launch: LaunchEntry, replica: Replica) -> None:
        """A worker of this replica is drained no more, or for another time. Unless one is, this ends only once something has its place."""
        replica.move_by = min((self.ledger.drains[r.worker] for r in replica.ranks if r.worker in self.ledger.drains), default=None)
        heir = launch.heir(replica)
        if replica.move_by is None and heir is not None and not heir.live:
            launch.replicas.remove(heir)
        self.touched.touch(launch)

    def moved(self, now: float, launch: LaunchEntry) -> list[Action]:
        """Let those go whose replacement is READY."""
        actions: list[Action] = []
        for replica in list(launch.replicas):
            if replica.replaces and replica.state == "READY" and not launch.end:
                old = launch.succeed(replica)
                actions += self.dismiss(launch, old)
                launch.look(now + self.launch_timeout)
        return actions

    def overdue(self, now: float, launch: LaunchEntry, replica: Replica) -> list[Action]:
        """The time of a drain is over, and nothing has taken this replica's place: what was to take it waits as any replica does."""
        heir = launch.heir(replica)
        if heir is not None:
            launch.succeed(heir)
        actions = self.dismiss(launch, replica)
        launch.look(now + self.launch_timeout)
        return actions

    def _hand_over(self, launch: LaunchEntry, replica: Replica) -> bool:
        """This replica has ended before its replacement was READY, which takes its place now. False where it has none."""
        heir = launch.heir(replica)
        if heir is None:
            return False
        launch.replicas.remove(launch.succeed(heir))
        return True

    # ---- what isn't wanted ----------------------------------------------------------------------

    def refuse(self, worker: str, record: ReplicaRecord, grace: float = 0.0) -> list[Action]:
        """End a process that isn't wanted."""
        number = rank_of(record)
        if record.status.state == "FAILED":
            return []
        found = self.by_life(record.plan.incarnation)
        if found is None or number >= len(found[1].ranks) or found[1].ranks[number].gone:
            self.ledger.stray(worker, record)
        return [Stop(worker, record.plan.replica_id, record.plan.incarnation, grace, number)]
