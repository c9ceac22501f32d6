"""A worker joins, tells how its devices are, is asked what it can run, and leaves: worker ↔ supervisor."""

from __future__ import annotations

from msgspec import Struct, field

from xi_core.cluster.devices import Device
from xi_core.cluster.messages.answers import Done
from xi_core.cluster.messages.replicas import ReplicaRecord
from xi_core.engine.info import HostInfo, Support
from xi_core.models.family import ModelSpec


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
    leaving: bool = False
    """It was told to stop, and is here only until what it runs has ended."""


class Registered(Struct):
    """The worker is in. What it should tell its people: differences to the supervisor that may cause trouble."""

    warnings: list[str] = field(default_factory=list)


class WorkerBeat(Struct, tag="worker_beat", kw_only=True):
    """Notice: the worker's devices as they are now. Sent when they changed, once per second at most."""

    worker: str
    devices: list[Device]


class Leaving(Struct, tag="leaving"):
    """This worker was told to stop. Its replicas end now, and nothing more is to be placed on it."""

    worker: str


class Shutdown(Struct, tag="shutdown"):
    """Stop, as on SIGTERM. Answered before it is done."""


class Inspect(Struct, tag="inspect"):
    """Read a local directory or file's own configuration."""

    path: str


class Inspected(Struct):
    """What a path holds."""

    model: ModelSpec


class MatchEngines(Struct, tag="match_engines", kw_only=True):
    """Which engines take each of these models on this worker."""

    models: list[ModelSpec]


class Matches(Struct):
    """For each model, per engine whether it takes it."""

    models: list[dict[str, Support]]


ANSWERS: dict[type[Struct], type[Struct]] = {
    Register: Registered,
    Leaving: Done,
    Shutdown: Done,
    Inspect: Inspected,
    MatchEngines: Matches,
}
"""Commands, each with the type of its answer."""
