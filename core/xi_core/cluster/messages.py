"""Commands and notices of the control plane: gateway ↔ supervisor ↔ worker, carried by `xi_core.transport.rpc`.

A command is a struct whose tag is its name; its answer's type stands in `ANSWERS`. A notice expects no answer.
"""

from __future__ import annotations

from msgspec import Struct, field

from xi_core.api.control import (
    CachedModelStatus,
    EngineStatus,
    EnvironmentStatus,
    LaunchSpec,
    LogPart,
    MemberRole,
    ModelStatus,
    PlacementReport,
    ProcessInfo,
    RegisterAnswer,
    Registration,
    ReplicaStatus,
    WorkerStatus,
)
from xi_core.cluster.devices import Device
from xi_core.engine.info import HostInfo, Support
from xi_core.models.family import ModelSpec
from xi_core.transport.security import KeyPair
from xi_core.wire.manifest import Manifest
from xi_core.wire.plan import LaunchPlan, RankAddress

# ---- gateway → supervisor -----------------------------------------------------------------------


class Launch(Struct, tag="launch"):
    """Start a launch; the answer comes when it is accepted, not when it is ready."""

    spec: LaunchSpec


class ListModels(Struct, tag="list_models"):
    """All launches."""


class GetModel(Struct, tag="get_model"):
    """One launch."""

    uid: str


class Explain(Struct, tag="explain"):
    """Where each replica of a launch would go now, device by device, and why. Nothing is started."""

    spec: LaunchSpec


class Scale(Struct, tag="scale"):
    """Have so many replicas of a launch; the answer comes when it is accepted."""

    uid: str
    replica: int


class Drain(Struct, tag="drain", kw_only=True):
    """Move all replicas from a worker to others within so many seconds; with `undo`, let it take replicas again."""

    worker: str
    seconds: float
    undo: bool = False


class ListWorkers(Struct, tag="list_workers"):
    """The workers, with their devices and what they run."""


class ReadLog(Struct, tag="read_log", kw_only=True):
    """A part of a replica's log, wherever its worker is."""

    uid: str
    replica: int | None = None
    """Its number; None: the first that there is."""
    rank: int = 0
    start: int = -65536
    """Where to begin, in bytes; below 0: so many before the end."""


class ListEnvironments(Struct, tag="list_environments"):
    """The environments of models, on every worker or on the one that is asked."""


class RemoveEnvironment(Struct, tag="remove_environment", kw_only=True):
    """Delete an environment, on every worker that has it."""

    name: str


class ListCache(Struct, tag="list_cache", kw_only=True):
    """The downloaded models, on every worker or on the one that is asked; those of `name` only, which may have the ids of `names`."""

    name: str = ""
    names: list[str] = field(default_factory=list)


class RemoveCache(Struct, tag="remove_cache", kw_only=True):
    """Delete a downloaded model, on every worker that has it. Those of `names` are meant, which the supervisor fills in."""

    name: str
    source: str | None = None
    revision: str | None = None
    names: list[str] = field(default_factory=list)


class StopCluster(Struct, tag="stop_cluster"):
    """Stop every worker with what it runs, then the servers."""


class Terminate(Struct, tag="terminate"):
    """End a launch, whatever state it is in; the answer comes when its replicas are gone."""

    uid: str


class ListEngines(Struct, tag="list_engines"):
    """The engines and whether they run on some worker; with `model`, a launch of it, which of the specs it can mean each takes."""

    model: LaunchSpec | None = None
    model_type: str | None = None
    """The type that the model must have."""


class ListFamilies(Struct, tag="list_families", kw_only=True):
    """The model families of a type (None: of all), built-in ones and registered ones."""

    model_type: str | None = None
    engine: str | None = None
    """Those alone that this engine knows how to run, on Linux with a GPU, whether it is installed here or not."""
    detailed: bool = False
    """With all of their specs."""


class GetFamily(Struct, tag="get_family", kw_only=True):
    """One family with all of its specs."""

    name: str
    model_type: str | None = None


class RegisterFamily(Struct, tag="register_family", kw_only=True):
    """Add a family, of which `text` is the file. `persist`: keep it beyond this supervisor's life."""

    text: str
    model_type: str | None = None
    persist: bool = True


class UnregisterFamily(Struct, tag="unregister_family", kw_only=True):
    """Take a registered family out again. What runs of it runs on."""

    name: str
    model_type: str | None = None


class Subscribe(Struct, tag="subscribe"):
    """Send the routing table now and each change from now on, as `TableUpdate` notices."""

    gateway: str
    pid: int


class GetCluster(Struct, tag="get_cluster"):
    """The processes of the cluster."""


class NewJoinToken(Struct, tag="new_join_token", kw_only=True):
    """A token with which one more worker or gateway may join, within `ttl` seconds."""

    role: MemberRole = "worker"
    ttl: float = 3600.0


# ---- worker → supervisor ------------------------------------------------------------------------


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


class Register(Struct, tag="register", kw_only=True):
    """A worker joins: who it is, what it has, which engines run on it, and which replicas it runs already."""

    worker: str
    incarnation: str
    pid: int
    keeper_pid: int
    version: str
    protocol: int
    devices: list[Device]
    engines: dict[str, Support]
    replicas: list[ReplicaRecord] = field(default_factory=list)
    address: str = ""
    """The host under which other machines reach this worker."""
    plugins: dict[str, str] = field(default_factory=dict)
    """The plugins that it has loaded, with the version of each one's distribution."""
    cpus: int = 0
    memory: int = 0
    """Bytes of main memory."""
    host: HostInfo | None = None
    """What engines were asked with; None from a worker that is older than this field."""


class WorkerBeat(Struct, tag="worker_beat", kw_only=True):
    """Notice: the worker's devices as they are now. Sent when they changed, once per second at most."""

    worker: str
    devices: list[Device]


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


class Leaving(Struct, tag="leaving"):
    """This worker was told to stop. Its replicas end now, and nothing more is to be placed on it."""

    worker: str


# ---- supervisor → worker ------------------------------------------------------------------------


class Inspect(Struct, tag="inspect"):
    """Read a local directory or file's own configuration."""

    path: str


class StartReplica(Struct, tag="start_replica", kw_only=True):
    """Resolve the artifact and start a replica. Its progress comes as `ReplicaUpdate`."""

    spec: LaunchSpec
    model: ModelSpec
    plan: LaunchPlan
    created: int
    deadline: float
    """Seconds from now in which the replica must be ready."""


class FetchLog(Struct, tag="fetch_log", kw_only=True):
    """A part of the log of a replica's rank, of this worker's disk."""

    replica_id: str
    rank: int
    start: int


class Shutdown(Struct, tag="shutdown"):
    """Stop, as on SIGTERM. Answered before it is done."""


class Prepare(Struct, tag="prepare", kw_only=True):
    """Get ready for one rank of a sharded replica: the artifact on disk, ports that are free. The answer comes when all is there.

    `StartReplica` of the same life follows, with the rendezvous of all ranks; or `StopReplica`, when another rank could not be prepared.
    """

    spec: LaunchSpec
    model: ModelSpec
    plan: LaunchPlan
    created: int
    rank: int
    deadline: float
    """Seconds from now in which the rank must be ready to serve."""


class StopReplica(Struct, tag="stop_replica"):
    """End a replica, or its rank on this worker: drain for `grace` seconds, then kill. With an incarnation, only that life of it."""

    replica_id: str
    grace: float = 0.0
    incarnation: str = ""
    rank: int = 0


class MatchEngines(Struct, tag="match_engines", kw_only=True):
    """Which engines take each of these models on this worker."""

    models: list[ModelSpec]


# ---- answers ------------------------------------------------------------------------------------


class Done(Struct):
    """Nothing to tell but that it is done."""


class Registered(Struct):
    """The worker is in. What it should tell its people: differences to the supervisor that may cause trouble."""

    warnings: list[str] = field(default_factory=list)


class Subscribed(Struct):
    """The table follows. `keys` are those that gateways show to replicas on other machines."""

    keys: KeyPair | None = None


class JoinTokenMade(Struct):
    """A join token, to be passed on in secret, and the whole command that uses it."""

    token: str
    command: str


class Launched(Struct):
    """The uid of an accepted launch."""

    uid: str


class Models(Struct):
    """Launches."""

    models: list[ModelStatus]


class Explained(Struct):
    """One decision for each replica, in order; they end with the first that finds no place."""

    replicas: list[PlacementReport]


class FoundEnvironments(Struct):
    """Environments of models."""

    environments: list[EnvironmentStatus]


class FoundModels(Struct):
    """Downloaded models."""

    models: list[CachedModelStatus]


class FreedModels(Struct):
    """Bytes that are free now."""

    freed: int


class Workers(Struct):
    """Workers."""

    workers: list[WorkerStatus]


class Engines(Struct):
    """Engines."""

    engines: list[EngineStatus]


class Families(Struct):
    """Model families."""

    families: list[Registration]


class Cluster(Struct):
    """Processes, and where other machines join (empty where they can't)."""

    processes: list[ProcessInfo]
    endpoint: str = ""


class Prepared(Struct):
    """Where the other ranks reach this one."""

    address: RankAddress


class Inspected(Struct):
    """What a path holds."""

    model: ModelSpec


class Matches(Struct):
    """For each model, per engine whether it takes it."""

    models: list[dict[str, Support]]


ANSWERS: dict[type[Struct], type[Struct]] = {
    Launch: Launched,
    ListModels: Models,
    GetModel: ModelStatus,
    Terminate: Done,
    Explain: Explained,
    Scale: Done,
    Drain: Done,
    ListWorkers: Workers,
    ReadLog: LogPart,
    ListEnvironments: FoundEnvironments,
    RemoveEnvironment: Done,
    ListCache: FoundModels,
    RemoveCache: FreedModels,
    StopCluster: Done,
    FetchLog: LogPart,
    Shutdown: Done,
    ListEngines: Engines,
    ListFamilies: Families,
    GetFamily: Registration,
    RegisterFamily: RegisterAnswer,
    UnregisterFamily: Done,
    Subscribe: Subscribed,
    GetCluster: Cluster,
    NewJoinToken: JoinTokenMade,
    Register: Registered,
    Leaving: Done,
    Inspect: Inspected,
    StartReplica: Done,
    Prepare: Prepared,
    StopReplica: Done,
    MatchEngines: Matches,
}

OF_GATEWAYS: tuple[type[Struct], ...] = (
    Launch,
    ListModels,
    GetModel,
    Terminate,
    Explain,
    Scale,
    ListWorkers,
    Drain,
    ReadLog,
    ListEnvironments,
    RemoveEnvironment,
    ListCache,
    RemoveCache,
    StopCluster,
    ListEngines,
    ListFamilies,
    GetFamily,
    RegisterFamily,
    UnregisterFamily,
    GetCluster,
    NewJoinToken,
    Subscribe,
)
"""The commands that gateways send."""


# ---- supervisor → gateway -----------------------------------------------------------------------


class ReplicaRoute(Struct, kw_only=True):
    """Where one ready replica listens, and which life of it."""

    replica_id: str
    incarnation: str
    endpoint: str
    transport: str
    slots: int
    key: str = ""
    """The public key of its listener; empty where it is local."""


class ModelRoute(Struct, kw_only=True):
    """One launch in the routing table. `replicas` holds the ready ones only; `detail` says why there are none."""

    uid: str
    state: str
    detail: str = ""
    replicas: list[ReplicaRoute] = field(default_factory=list)
    context_length: int | None = None
    endpoints: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    """Names of its LoRA modules, by which requests may call it too."""


class TableUpdate(Struct, tag="table_update", kw_only=True):
    """Notice: the whole routing table at a version (`full`), or the models that changed and those that went."""

    epoch: str
    version: int
    full: bool
    models: list[ModelRoute]
    removed: list[str] = field(default_factory=list)


NOTICES: tuple[type[Struct], ...] = (WorkerBeat, ReplicaUpdate, ReplicaGone, TableUpdate)
"""Every notice; with `ANSWERS` it makes the vocabulary of each link."""
