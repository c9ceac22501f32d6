"""What lies on workers' disks, environments and downloaded models: gateway → supervisor, which asks its workers with the same commands."""

from __future__ import annotations

from msgspec import Struct, field

from xi_core.api.control import CachedModelStatus, EnvironmentStatus
from xi_core.cluster.messages.answers import Done


class ListEnvironments(Struct, tag="list_environments"):
    """The environments of models, on every worker or on the one that is asked."""


class FoundEnvironments(Struct):
    """Environments of models."""

    environments: list[EnvironmentStatus]


class RemoveEnvironment(Struct, tag="remove_environment", kw_only=True):
    """Delete an environment, on every worker that has it."""

    name: str


class ListCache(Struct, tag="list_cache", kw_only=True):
    """The downloaded models, on every worker or on the one that is asked; those of `name` only, which may have the ids of `names`."""

    name: str = ""
    names: list[str] = field(default_factory=list)
    incomplete: bool = False
    """Also what came in part, or is damaged."""


class FoundModels(Struct):
    """Downloaded models."""

    models: list[CachedModelStatus]


class RemoveCache(Struct, tag="remove_cache", kw_only=True):
    """Delete a downloaded model, on every worker that has it. Those of `names` are meant, which the supervisor fills in."""

    name: str
    source: str | None = None
    revision: str | None = None
    names: list[str] = field(default_factory=list)


class FreedModels(Struct):
    """Bytes that are free now."""

    freed: int


ANSWERS: dict[type[Struct], type[Struct]] = {
    ListEnvironments: FoundEnvironments,
    RemoveEnvironment: Done,
    ListCache: FoundModels,
    RemoveCache: FreedModels,
}
"""Commands, each with the type of its answer."""
