"""What users ask of launches: gateway → supervisor."""

from __future__ import annotations

from msgspec import Struct

from xi_core.api.control import LaunchSpec, LogPart, ModelStatus, PlacementReport
from xi_core.cluster.messages.answers import Done


class Launch(Struct, tag="launch"):
    """Start a launch; the answer comes when it is accepted, not when it is ready."""

    spec: LaunchSpec


class Launched(Struct):
    """The uid of an accepted launch."""

    uid: str
    existed: bool = False
    """Whether it goes on since before, or another has asked for the same and it begins now: it isn't this command that begins it."""


class ListModels(Struct, tag="list_models"):
    """All launches."""


class Models(Struct):
    """Launches."""

    models: list[ModelStatus]


class GetModel(Struct, tag="get_model"):
    """One launch."""

    uid: str


class Terminate(Struct, tag="terminate"):
    """End a launch, whatever state it is in; the answer comes when its replicas are gone."""

    uid: str


class Explain(Struct, tag="explain"):
    """Where each replica of a launch would go now, device by device, and why. Nothing is started."""

    spec: LaunchSpec


class Explained(Struct):
    """One decision for each replica, in order; they end with the first that finds no place."""

    replicas: list[PlacementReport]


class Scale(Struct, tag="scale"):
    """Have so many replicas of a launch; the answer comes when it is accepted."""

    uid: str
    replica: int


class Sleep(Struct, tag="sleep"):
    """Have all replicas of a launch sleep at a level, 0: wake; the answer comes when they do."""

    uid: str
    level: int


class ReadLog(Struct, tag="read_log", kw_only=True):
    """A part of a replica's log, wherever its worker is."""

    uid: str
    replica: int | None = None
    """Its number; None: the first that there is."""
    rank: int = 0
    start: int = -65536
    """Where to begin, in bytes; below 0: so many before the end."""
    previous: bool = False
    """The log before this one: of the replica's life before, or of what this life wrote until its log grew too large."""


ANSWERS: dict[type[Struct], type[Struct]] = {
    Launch: Launched,
    ListModels: Models,
    GetModel: ModelStatus,
    Terminate: Done,
    Explain: Explained,
    Scale: Done,
    Sleep: Done,
    ReadLog: LogPart,
}
"""Commands, each with the type of its answer."""
