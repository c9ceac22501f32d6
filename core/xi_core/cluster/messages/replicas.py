"""The life of a replica: the supervisor starts and ends it on workers, which tell how it is. Ranks of a sharded one meet by `Prepare`."""

from __future__ import annotations

from msgspec import Struct

from xi_core.api.control import LaunchSpec, LogPart, ReplicaStatus
from xi_core.cluster.messages.answers import Done
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import Ability, Manifest
from xi_core.wire.plan import LaunchPlan, RankAddress
from xi_core.wire.sleep import NO_SLEEP


class StartReplica(Struct, tag="start_replica", kw_only=True):
    """Resolve the artifact and start a replica. Its progress comes as `ReplicaUpdate`."""

    spec: LaunchSpec
    model: ModelSpec
    plan: LaunchPlan
    created: int
    deadline: float
    """Seconds in which the replica must be ready, from the moment when its artifact is there."""
    restarts: int = 0
    moves: int = 0
    """How often it was started before, and why: as in `ReplicaStatus`."""


class Prepare(Struct, tag="prepare", kw_only=True):
    """Get ready for one rank of a sharded replica: the artifact on disk, ports that are free. The answer comes when all is there, however
    long a download takes that goes on: it renews the launch's deadline, which ends the launch, and so this rank, when it stalls.

    `StartReplica` of the same life follows, with the rendezvous of all ranks; or `StopReplica`, when another rank could not be prepared.
    """

    spec: LaunchSpec
    model: ModelSpec
    plan: LaunchPlan
    created: int
    rank: int
    deadline: float
    """Seconds in which the rank must be ready to serve, from the moment when all ranks are prepared."""
    restarts: int = 0
    moves: int = 0

    def start(self, plan: LaunchPlan) -> StartReplica:
        """What starts a rank with this plan otherwise."""
        common = {name: getattr(self, name) for name in ("spec", "model", "created", "deadline", "restarts", "moves")}
        return StartReplica(plan=plan, **common)


class Prepared(Struct):
    """Where the other ranks reach this one."""

    address: RankAddress


class StopReplica(Struct, tag="stop_replica"):
    """End a replica, or its rank on this worker: drain for `grace` seconds, then kill. With an incarnation, only that life of it."""

    replica_id: str
    grace: float = 0.0
    incarnation: str = ""
    rank: int = 0


class SleepReplica(Struct, tag="sleep_replica", kw_only=True):
    """Have this life of a replica sleep at a level, 0: wake. To the worker of rank 0; the answer comes when it is done."""

    replica_id: str
    incarnation: str
    level: int


class FetchLog(Struct, tag="fetch_log", kw_only=True):
    """A part of the log of a replica's rank, of this worker's disk."""

    replica_id: str
    rank: int
    start: int
    previous: bool = False


class ReplicaRecord(Struct, kw_only=True):
    """A replica as its worker sees it: enough for a supervisor that forgot everything to adopt it."""

    plan: LaunchPlan
    spec: LaunchSpec
    status: ReplicaStatus
    created: int
    model: ModelSpec
    endpoint: str = ""
    context_length: int = 0
    slots: int = 0
    manifest: Manifest | None = None
    sleep: Ability = NO_SLEEP
    """Whether the loaded model can sleep."""


class ReplicaUpdate(Struct, tag="replica_update"):
    """Notice: a replica changed."""

    record: ReplicaRecord


class ReplicaGone(Struct, tag="replica_gone", kw_only=True):
    """Notice: a replica's process ended. `error` says why, with the last lines of its stderr, when it was not asked to."""

    replica_id: str
    uid: str
    error: str | None = None
    incarnation: str = ""
    final: bool = False
    """The replica said itself why it can't be loaded: trying again would end the same way."""
    code: str | None = None
    """The error's code in `xi_core.errors`, where it has one."""
    rank: int = 0


ANSWERS: dict[type[Struct], type[Struct]] = {
    StartReplica: Done,
    Prepare: Prepared,
    StopReplica: Done,
    SleepReplica: Done,
    FetchLog: LogPart,
}
"""Commands, each with the type of its answer."""
