"""The launch plan: all that a replica's process needs, handed to it on its standard input. It reads no settings itself."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class EngineRef(Struct, kw_only=True, frozen=True):
    """Which engine to load: its name for people, and `module:Class` for the import."""

    name: str
    path: str


class Artifact(Struct, kw_only=True, frozen=True):
    """Resolved weights on this machine's disk: a directory (`pytorch`, `mlx`) or a file (`ggufv2`)."""

    format: str
    path: str
    quantization: str | None = None


class LoraModule(Struct, kw_only=True, frozen=True):
    """A LoRA adapter that is served beside the model under a name of its own; `path` is a directory on the worker's disk."""

    name: str
    path: str


class RankAddress(Struct, kw_only=True, frozen=True):
    """One rank of a sharded replica: where it runs, and the ports of its machine that are kept for it."""

    rank: int
    worker: str
    host: str
    ports: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    interface: str = ""
    """Name of the network interface that `host` belongs to; empty where nobody knows."""


class Rendezvous(Struct, kw_only=True, frozen=True):
    """How the ranks of a sharded replica find each other. All ranks get the same `world`; rank 0 is its head."""

    rank: int
    world: tuple[RankAddress, ...]
    link: str = ""
    """What joins the machines: `loopback`, `ethernet`, `infiniband`; empty where nobody knows."""

    @property
    def own(self) -> RankAddress:
        """This rank's address."""
        return self.world[self.rank]

    @property
    def head(self) -> RankAddress:
        """Rank 0's."""
        return self.world[0]


class ServingLimits(Struct, kw_only=True, frozen=True):
    """Bounds and clocks of a replica, in seconds where they are times."""

    batch_size: int = 32
    """Most requests that run at once, where the launch's own options don't say."""
    batch_interval: float = 0.003
    """Longest wait to fill a batch when idle."""
    queue: int = 256
    """Requests that may wait in the replica; one more is refused with 429."""
    peer_timeout: float = 1.0
    """A gateway silent for this long has its requests aborted."""
    heartbeat: float = 0.25
    hang_timeout: float = 60.0
    """Busy for this long without a step: the replica says that it is unhealthy."""
    grace: float = 10.0
    """Time to finish running requests on a graceful stop."""
    launch_timeout: float = 600.0
    """A launch that isn't READY by then is FAILED."""


class ReplicaSecurity(Struct, kw_only=True, frozen=True):
    """Of a replica that listens off its machine: its own keys, and the public key that gateways must have. All in Z85.

    The secret key is in the plan that the replica's process reads, and in no other copy.
    """

    gateways: str
    public: str = ""
    secret: str = ""

    def __repr__(self) -> str:
        return f"ReplicaSecurity(gateways={self.gateways!r}, public={self.public!r})"


class LaunchPlan(Struct, kw_only=True):
    """One replica's part of a launch, resolved: artifact, engine, devices, address.

    `parsers` maps a kind (`tool`, `reasoning`) to the `module:Class` that the serving layer loads; `chat_template` stands instead of the
    artifact's own, `stop` and `stop_token_ids` beside the end tokens that its files name.
    """

    uid: str
    replica_id: str
    incarnation: str
    engine: EngineRef
    artifact: Artifact
    endpoint: str
    transport: str = "xi_plugins.transports.zmq:ZmqTransport"
    options: dict[str, Any] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    parsers: dict[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    enable_thinking: bool | None = None
    """Whether the model thinks where a request doesn't say; None leaves it to its chat template."""
    lora_modules: list[LoraModule] = field(default_factory=list)
    rendezvous: Rendezvous | None = None
    """Of a replica that is sharded over several workers; None where it is one process."""
    memory: int = 0
    """Bytes of each device's memory that placement keeps for it; 0 where nobody knows."""
    memory_share: float = 0.0
    """Part of each device's whole memory that placement keeps for it."""
    exclusive: bool = False
    """It shares no device with another replica."""
    security: ReplicaSecurity | None = None
    """Of a replica that listens where other machines reach it; None for a local one."""
    limits: ServingLimits = field(default_factory=ServingLimits)
    log_level: str = "info"
    trust_remote_code: bool = False
    """The request and the operator let Python code in the artifact's directory run."""
    pickled_weights: bool = False
    """The worker's operator lets weights be read from `pytorch_model*.bin`, by `weights_only` loading."""
    stop: list[str] = field(default_factory=list)
    """Strings that end an answer, a special token's name among them: from the model's family."""
    stop_token_ids: list[int] = field(default_factory=list)
