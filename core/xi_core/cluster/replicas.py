"""One replica as the supervisor's pure core keeps it, rank by rank, and the actions that start and end it. See `lifecycle`."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import Struct

from xi_core.api.control import LaunchState, RankStatus, ReplicaStatus
from xi_core.api.transfer import ModelTransfer
from xi_core.cluster.messages import ReplicaRecord, ReplicaRoute
from xi_core.cluster.placement import Assignment

ORDER: tuple[LaunchState, ...] = ("PENDING", "PREPARING", "STARTING", "LOADING", "READY")
"""States of what is wanted, in the order in which they come: a whole is as far as its last part."""
RESTARTS, WINDOW, BACKOFF = 3, 60.0, 0.5
"""A replica is restarted so many times within the window, in seconds; before the first restart comes this pause, doubled each time."""


class Start(Struct, frozen=True):
    """Action: start this life of a replica, one rank for each assignment, within so many seconds."""

    uid: str
    replica_id: str
    incarnation: str
    assignments: tuple[Assignment, ...]
    deadline: float
    restarts: int = 0
    moves: int = 0
    """As in `Replica`; its worker remembers them, for a supervisor that doesn't."""


class Stop(Struct, frozen=True):
    """Action: end one rank of this life of a replica, after `grace` seconds at most."""

    worker: str
    replica_id: str
    incarnation: str
    grace: float
    rank: int = 0


Action = Start | Stop


@dataclass
class Rank:
    """One process of a life: alone the whole replica, or its part on one worker."""

    worker: str
    devices: tuple[str, ...] = ()
    state: LaunchState = "PENDING"
    stage: str = "placed"
    progress: float | None = None
    download: ModelTransfer | None = None
    pid: int | None = None
    lost_at: float | None = None
    """Since when its worker has been away, or was last found to be, with no place for the replica elsewhere."""
    away: bool = False
    """That was found: it is no short blip of the link."""
    gone: bool = False
    """No process of it exists any more."""

    @property
    def told(self) -> LaunchState:
        """Its state as users see it."""
        return "PENDING" if self.state == "READY" and self.away else self.state


@dataclass(frozen=True)
class Ending:
    """Why a life ends that nobody asked to. With `fault` it counts as a death; `final`: trying again would end the same way."""

    error: str
    final: bool = False
    code: str | None = None
    fault: bool = True


@dataclass
class Replica:
    """One replica of a launch. It is live from the moment its start was asked for until its workers say that every rank is gone."""

    replica_id: str
    incarnation: str = ""
    """Which life; empty when it has none."""
    ranks: list[Rank] = field(default_factory=list)
    """Of this life, the one that serves first."""
    state: LaunchState = "PENDING"
    stage: str = ""
    starts: int = 0
    restarts: int = 0
    """How often it was started again after it had ended by its own fault."""
    moves: int = 0
    """How often it was started again because of its worker, which went away, began anew or was stopped."""
    error: str | None = None
    deaths: list[float] = field(default_factory=list)
    """Times of the last deaths that nobody asked for: those of the last 60 s, and those since it was READY."""
    start_at: float | None = None
    """When to start it next, where it is not live; None: as soon as there is a place."""
    ending: Ending | None = None
    """Why the rest of this life is being ended, after one rank of it was lost."""
    leaving: bool = False
    """It is not wanted any more, and removed once it is gone."""
    move_by: float | None = None
    """Its worker is being drained: when it ends though nothing has taken its place."""
    replaces: str = ""
    """The replica on a drained worker whose place it takes once it is READY."""
    head: ReplicaRecord | None = None
    """What rank 0 last reported."""
    last_workers: dict[int, str] = field(default_factory=dict)
    """Where the ranks of its last life run or ran: their logs are there."""
    former_workers: dict[int, str] = field(default_factory=dict)
    """The same of the life before that."""

    @property
    def live(self) -> bool:
        """Whether a process of it may exist."""
        return bool(self.incarnation)

    @property
    def worker(self) -> str:
        """Where it serves; empty while it has no life."""
        return self.ranks[0].worker if self.ranks else ""

    @property
    def devices(self) -> tuple[str, ...]:
        """Those of the rank that serves."""
        return self.ranks[0].devices if self.ranks else ()

    @property
    def lost_at(self) -> float | None:
        """Since when a worker of it has been away."""
        return min((r.lost_at for r in self.ranks if r.lost_at is not None and not r.gone), default=None)

    @property
    def displaced(self) -> bool:
        """Whether it is where its launch can't stay: on a worker that is drained or away. Another is to take its place elsewhere."""
        return self.move_by is not None or self.away

    @property
    def away(self) -> bool:
        """Whether a worker of it has been away for longer than its word holds. It may serve on, and nobody can say so."""
        return any(r.away and not r.gone for r in self.ranks)

    @property
    def waits(self) -> bool:
        """Whether it misses only a worker or room."""
        return self.lost_at is not None if self.live else self.start_at is None or not self.error

    @property
    def spent(self) -> bool:
        """Whether it has used up its restarts, and hasn't been READY since: it is tried again, but nobody is to wait for it."""
        return self.error is not None and len(self.deaths) > RESTARTS

    @property
    def told(self) -> LaunchState:
        """Its state as users see it."""
        return "PENDING" if self.state == "READY" and self.away else self.state

    @property
    def wanted(self) -> bool:
        """Whether it counts among those that the launch asks for."""
        return not self.leaving and not self.replaces

    @property
    def route(self) -> ReplicaRoute | None:
        """Where it serves; None unless all of it is READY, and while it is on its way out."""
        head = self.head
        if self.state != "READY" or self.leaving or head is None or head.manifest is None:
            return None
        return ReplicaRoute(
            replica_id=self.replica_id,
            incarnation=self.incarnation,
            endpoint=head.endpoint,
            transport=head.plan.transport,
            slots=head.slots,
            key=head.plan.security.public if head.plan.security is not None else "",
            gateways=head.plan.security.gateways if head.plan.security is not None else "",
            workers=tuple(rank.worker for rank in self.ranks),
        )

    @property
    def asleep(self) -> int:
        """At which level it sleeps; 0: awake."""
        return self.head.status.asleep if self.head is not None and self.state == "READY" else 0

    @property
    def context_length(self) -> int:
        """Of the loaded model; 0 while there is none."""
        return self.head.context_length if self.head is not None and self.state == "READY" else 0

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The API's endpoints that the loaded model serves."""
        manifest = self.head.manifest if self.head is not None and self.state == "READY" else None
        return tuple(sorted(manifest.endpoints)) if manifest is not None else ()

    def begin(self, incarnation: str, assignments: tuple[Assignment, ...]) -> None:
        """Begin a life."""
        self.former_workers, self.last_workers = self.last_workers, {rank: a.worker for rank, a in enumerate(assignments)}
        self.incarnation, self.starts = incarnation, self.starts + 1
        self.ranks = [Rank(a.worker, a.devices) for a in assignments]
        self.start_at, self.ending, self.head = None, None, None
        self.state, self.stage = "PENDING", "placed"

    def clear(self) -> None:
        """Forget the life that ended."""
        self.incarnation, self.ranks, self.ending, self.head = "", [], None, None
        self.state, self.stage, self.move_by = "PENDING", "", None

    def call_away(self) -> None:
        """A worker of it stays away."""
        for rank in self.ranks:
            rank.away = rank.away or (rank.lost_at is not None and not rank.gone)

    def take(self, number: int, record: ReplicaRecord) -> None:
        """Take over what its worker reports of a rank."""
        rank, status = self.ranks[number], record.status
        rank.state, rank.stage, rank.progress, rank.download = status.state, status.stage, status.progress, status.download
        rank.pid, rank.lost_at, rank.away = status.pid, None, False
        if number == 0:
            self.head = record
        if self.ending is not None or self.leaving:
            return
        states = [r.state for r in self.ranks]
        ending = [s for s in states if s not in ORDER]
        self.state = ending[0] if ending else min(states, key=ORDER.index)
        slowest = self.ranks[states.index(self.state)]
        self.stage = slowest.stage if len(states) == 1 or self.state == "READY" else f"rank {states.index(self.state)}: {slowest.stage}"
        if self.state == "READY":
            self.error = None

    def stops(self, grace: float) -> list[Action]:
        """What ends all that is left of its life."""
        return [Stop(r.worker, self.replica_id, self.incarnation, grace, number) for number, r in enumerate(self.ranks) if not r.gone]

    def status(self) -> ReplicaStatus:
        """As the control API shows it."""
        ranks = [
            RankStatus(rank=number, state=r.told, stage=r.stage, worker=r.worker, devices=list(r.devices), pid=r.pid)
            for number, r in enumerate(self.ranks)
        ]
        slowest = next((r for r in self.ranks if r.state == self.state), None)
        return ReplicaStatus(
            replica_id=self.replica_id,
            state=self.told,
            stage=self.stage,
            progress=slowest.progress if slowest is not None else None,
            download=slowest.download if slowest is not None else None,
            worker=self.worker,
            devices=list(self.devices),
            pid=self.ranks[0].pid if self.ranks else None,
            restarts=self.restarts,
            moves=self.moves,
            error=self.error,
            asleep=self.asleep,
            ranks=ranks if len(ranks) > 1 else [],
        )


def rank_of(record: ReplicaRecord) -> int:
    """Which rank of its replica a record tells of."""
    rendezvous = record.plan.rendezvous
    return rendezvous.rank if rendezvous is not None else 0
