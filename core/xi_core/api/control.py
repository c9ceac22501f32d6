"""The control API: launching, watching and ending models. Field names are those that xinference-client sends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from xi_core.api.transfer import ModelTransfer
from xi_core.errors import ErrorBody, LaunchCancelled, LaunchError, LaunchFailed, XiError

Uid = Annotated[str, Meta(pattern=r"^(?!\.+$)[A-Za-z0-9._-]{1,128}$(?!\n)")]
"""A launch's name, which names files too: no line break (Python's `$` lets one pass), and not dots alone."""

Name = Annotated[str, Meta(max_length=4096)]
"""A model's name or path: no longer than paths can be."""

MODEL_TYPES = ("LLM", "embedding", "rerank")
"""What a model is for: text, vectors, or rating documents."""


def model_type_of(text: str) -> str | None:
    """A model type in its one form, from any case; None for one that isn't served."""
    return next((known for known in MODEL_TYPES if known.lower() == text.lower()), None)


LaunchState = Literal["PENDING", "PREPARING", "STARTING", "LOADING", "READY", "FAILED", "CANCELLED", "STOPPING"]
"""PENDING: accepted, not placed. PREPARING: files and environment. STARTING: process started, no word yet. LOADING: weights.
READY: every replica makes progress. FAILED and CANCELLED are ends; STOPPING leads to removal."""


class EnvironmentStatus(Struct, kw_only=True):
    """One environment of models on a worker: answer to `GET /v1/virtualenvs`."""

    worker: str
    name: str
    packages: list[str]
    """As locked: `name==version`."""
    used: float
    """When it was last used, in seconds since 1970."""
    size: int
    """Bytes."""


class CachedModelStatus(Struct, kw_only=True):
    """A downloaded model on a worker: part of the answer to `GET /v1/cache/models`."""

    worker: str
    model_name: str
    """Its id at its source."""
    source: str
    model_version: str
    """The commit, or what else the source pins its files by."""
    path: str
    files: int
    size: int
    """Bytes."""
    created: float
    """When it was complete, in seconds since 1970; 0 where it isn't."""
    complete: bool = True
    """False for what came in part, or is damaged; it is told only to who asks for it (`incomplete`)."""


class CachedModelList(Struct):
    """Answer to `GET /v1/cache/models`, in Xinference's form."""

    models: list[CachedModelStatus] = msgspec.field(name="list")


class CacheRemoval(Struct):
    """Answer to `DELETE /v1/cache/models`."""

    result: bool
    freed: int
    """Bytes, on all workers."""


class ReplicaConfig(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where one replica goes, instead of what the launch says for all: `replica_config` holds one for each replica."""

    worker: Name | None = None
    """A worker's name or address, or several with commas."""
    gpu_idx: list[int] | None = None
    n_gpu: Annotated[int, Meta(ge=0)] | None = None


class LaunchSpec(Struct, kw_only=True, omit_defaults=True):
    """What the user asked for, whole: two equal specs are the same launch.

    `model_name` is a family's name, a directory or a `.gguf` file. `options` are the engine's own, as given by the user.
    """

    model_name: Name
    model_uid: Uid | None = None
    model_type: str = "LLM"
    model_engine: str | None = None
    model_format: str | None = None
    size_in_billions: str | None = None
    quantization: str | None = None
    model_path: Name | None = None
    source: Name | None = None
    """Where its files come from, `huggingface` or another source; None: `XI_MODEL_SRC` if it is there, else its first source."""
    replica: Annotated[int, Meta(ge=1, le=1024)] = 1
    n_gpu: int | Literal["auto"] | None = "auto"
    gpu_idx: list[int] | None = None
    n_worker: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Workers that share each replica. Above 1 the engine shards the model over them, with `n_gpu` devices on each."""
    gpu_pool: Annotated[int, Meta(ge=1)] | None = None
    """Most devices that all replicas hold together; None: as many as there are."""
    worker_ip: Name | None = None
    """The workers to choose from: a name or an address, or several with commas."""
    replica_config: list[ReplicaConfig] | None = None
    scheduler: Name | None = None
    """What places the replicas; None: `XI_LAUNCH_STRATEGY`."""
    enable_thinking: bool | None = None
    """Whether the model thinks where a request doesn't say; None leaves it to its chat template."""
    tool_parser: Name | None = None
    """Parser of tool calls instead of the model's own; `none` for none."""
    reasoning_parser: Name | None = None
    """Parser of reasoning instead of the model's own; `none` for none."""
    lora_modules: dict[Uid, Name] = msgspec.field(default_factory=dict)
    """LoRA adapters to serve beside the model: the name that requests call each by, and its directory."""
    enable_virtual_env: bool | None = None
    """Whether the replicas get packages of their own; None: where `virtual_env_packages` names some."""
    virtual_env_packages: list[str] = msgspec.field(default_factory=list)
    """Packages with versions for the model's own environment, beside those that its engine needs."""
    virtual_env_find_links: list[str] = msgspec.field(default_factory=list)
    """Directories of the workers' machines in which packages may lie."""
    trust_remote_code: bool = False
    """Whether Python code in the model's directory may run; the server's operator must allow it too (`XI_ALLOW_REMOTE_CODE`)."""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    options: dict[str, Any] = msgspec.field(default_factory=dict)


def has_environment(spec: LaunchSpec) -> bool:
    """Whether the launch's replicas run in an environment of their own."""
    return spec.enable_virtual_env if spec.enable_virtual_env is not None else bool(spec.virtual_env_packages)


class LaunchAnswer(Struct, kw_only=True):
    """Answer to `POST /v1/models`."""

    model_uid: str


class RankStatus(Struct, kw_only=True):
    """One rank of a sharded replica, as last reported."""

    rank: int
    state: LaunchState
    stage: str = ""
    worker: str = ""
    devices: list[str] = msgspec.field(default_factory=list)
    pid: int | None = None


class ReplicaStatus(Struct, kw_only=True):
    """One replica of a launch, as last reported."""

    replica_id: str
    state: LaunchState
    stage: str = ""
    progress: float | None = None
    """Share of the stage that is done, 0 to 1, where the stage can tell."""
    download: ModelTransfer | None = None
    """In bytes, in all and of each file that is coming; null while none are."""
    worker: str = ""
    devices: list[str] = msgspec.field(default_factory=list)
    pid: int | None = None
    restarts: int = 0
    moves: int = 0
    """How often it was started again: after it had ended by its own fault, and as its worker went away, began anew or was stopped."""
    error: str | None = None
    asleep: int = 0
    """The level at which it sleeps; 0: awake."""
    ranks: list[RankStatus] = msgspec.field(default_factory=list)
    """Of a replica that is sharded over several workers; else empty."""


class ModelStatus(Struct, kw_only=True):
    """One launch: answer to `GET /v1/models/{uid}`."""

    model_uid: str
    spec: LaunchSpec
    state: LaunchState
    created: int
    engine: str = ""
    model_format: str = ""
    size_in_billions: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    replicas: list[ReplicaStatus] = msgspec.field(default_factory=list)
    error: str | None = None
    ready_replicas: int = 0
    asleep_replicas: int = 0
    """How many replicas serve, and how many sleep until the model is woken; the launch is READY when `spec.replica` do either."""
    error_code: str | None = None
    """Code of the error that the replica named itself, such as `artifact_error`."""

    def is_ready(self) -> bool:
        """Whether the launch is READY. Raises a `LaunchError` with the reason, or `LaunchCancelled` if it ended otherwise."""
        if self.state == "FAILED":
            reasons = [self.error, *(replica.error for replica in self.replicas)]
            unknown = f"model '{self.model_uid}' failed; the replica's log says why"
            reason = next((reason for reason in reasons if reason), unknown)
            cause = XiError.from_body(ErrorBody(message=reason, code=self.error_code))
            raise cause if isinstance(cause, LaunchError) else LaunchFailed(reason)
        if self.state in ("CANCELLED", "STOPPING"):
            raise LaunchCancelled(f"model '{self.model_uid}' was terminated before it was ready")
        return self.state == "READY"


class DeviceVerdict(Struct, kw_only=True):
    """Why a device, or a worker where `device` is empty, was taken or not."""

    worker: str
    device: str = ""
    taken: bool
    reason: str


class PlacementReport(Struct, kw_only=True):
    """Where one replica would go: a worker for each rank and its devices, or why nowhere; every candidate's reason in both cases."""

    placed: bool
    reason: str = ""
    ranks: list[RankStatus] = msgspec.field(default_factory=list)
    candidates: list[DeviceVerdict] = msgspec.field(default_factory=list)


class DeviceStatus(Struct, kw_only=True):
    """One accelerator of a worker, as last reported. Memory in bytes, utilisation 0 to 1; `replicas` holds it now."""

    id: str
    kind: str
    name: str = ""
    memory: int = 0
    memory_free: int = 0
    utilisation: float = 0.0
    replicas: int = 0


class WorkerStatus(Struct, kw_only=True):
    """One worker of the cluster: answer to `GET /v1/workers`."""

    name: str
    address: str
    state: Literal["ready", "draining", "away"]
    version: str = ""
    cpus: int = 0
    memory: int = 0
    """Bytes of main memory; those of its container where that has fewer, and so are `cpus`."""
    devices: list[DeviceStatus] = msgspec.field(default_factory=list)
    engines: list[str] = msgspec.field(default_factory=list)
    """Those that run there."""
    replicas: list[str] = msgspec.field(default_factory=list)
    differences: list[str] = msgspec.field(default_factory=list)
    """In which it isn't like the supervisor's machine: versions of xi and of plugins."""


class LogPart(Struct, kw_only=True):
    """A part of a replica's log. `next` is where to go on reading; it is `start` again while nothing is added."""

    replica_id: str
    rank: int
    worker: str
    text: str
    start: int
    next: int


class ReplicaCount(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `PUT /v1/models/{uid}/replicas`."""

    replica: Annotated[int, Meta(ge=1, le=1024)]


class DrainOrder(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/workers/{worker}/drain`."""

    seconds: Annotated[float, Meta(ge=0, le=7 * 24 * 3600)] = 600.0
    """Longest time for everything to move elsewhere."""
    undo: bool = False
    """Let the worker take replicas again instead."""


MemberRole = Literal["worker", "gateway"]
"""As what a process joins a cluster."""


class JoinTokenOrder(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/cluster/join-tokens`."""

    role: MemberRole = "worker"
    ttl: Annotated[float, Meta(ge=1, le=30 * 24 * 3600)] = 3600.0
    """Seconds for which the token is good."""


class JoinTokenAnswer(Struct, kw_only=True):
    """Answer to it: a token for one use, and the whole command that uses it."""

    token: str
    command: str


class SpecVerdict(Struct, kw_only=True):
    """Whether an engine runs one spec of a model here."""

    model_format: str
    model_size_in_billions: str | None
    quantization: str | None
    runs: bool
    reason: str = ""
    """Why not, or what there is to say."""


class SpecInfo(Struct, kw_only=True, omit_defaults=True):
    """One spec of a registered model, in Xinference's words."""

    model_format: str
    model_size_in_billions: str | None = None
    quantization: str | None = None
    model_hub: str = ""
    model_id: str = ""
    model_revision: str | None = None
    files: list[str] = msgspec.field(default_factory=list)
    """Those of the repository that are the model; empty: all."""
    mirrors: dict[str, str] = msgspec.field(default_factory=dict)
    """Its id at other hubs."""


class Registration(Struct, kw_only=True):
    """A model family that can be launched by name: an entry of `GET /v1/model_registrations/{type}`."""

    model_name: str
    model_type: str
    is_builtin: bool
    model_description: str = ""
    model_ability: list[str] = msgspec.field(default_factory=list)
    context_length: int | None = None
    formats: list[str] = msgspec.field(default_factory=list)
    sizes: list[str] = msgspec.field(default_factory=list)
    """Billions of weights."""
    aliases: list[str] = msgspec.field(default_factory=list)
    persistent: bool = True
    """False for one that ends with its supervisor."""
    model_path: str | None = None
    model_specs: list[SpecInfo] = msgspec.field(default_factory=list)
    """Empty in lists, unless they are asked for (`detailed=true`)."""


class RegisterOrder(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of `POST /v1/model_registrations/{type}`. `model` is the text of a family file."""

    model: Annotated[str, Meta(min_length=2, max_length=1024 * 1024)]
    persist: bool = True
    """Keep it over restarts of the supervisor."""
    worker_ip: None = None
    """For Xinference's client: families are known to the whole cluster, so that it can only be null."""


class RegisterAnswer(Struct, kw_only=True):
    """What was registered, and what of the file xi does another way."""

    model_name: str
    model_type: str
    notes: list[str] = msgspec.field(default_factory=list)


class EngineStatus(Struct, kw_only=True):
    """One engine as `xi engines` shows it."""

    name: str
    available: bool
    reason: str
    """Version when available; else why not, with the pip line."""
    formats: list[str]
    plugin: str
    model: str | None = None
    """When asked for one model: whether this engine takes it (`yes`, or the reason why not)."""
    specs: list[SpecVerdict] = msgspec.field(default_factory=list)
    """When asked for one model: each of its specs."""


class ClusterInfo(Struct, kw_only=True):
    """Answer to `GET /v1/cluster/info`: the processes that serve."""

    version: str
    processes: list[ProcessInfo]
    cluster_endpoint: str | None = None
    """Where workers and gateways of other machines join; none for `xi serve`."""


class ProcessInfo(Struct, kw_only=True):
    """One process: its role (supervisor, gateway, worker, keeper, replica) and pid."""

    role: str
    pid: int
    name: str = ""
