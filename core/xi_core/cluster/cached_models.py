"""The model cache of a worker, as operators see it: what is in it, putting models in, and taking those out that nothing uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from xi_core.api.control import CachedModelStatus
from xi_core.cluster.messages import FoundModels, FreedModels, ListCache, RemoveCache
from xi_core.cluster.pulls import Pulls
from xi_core.cluster.threads import in_thread
from xi_core.config import Settings
from xi_core.errors import Conflict, NotFound
from xi_core.models.cache import CachedModel, ModelCache
from xi_core.models.catalog import find_family
from xi_core.models.family import ModelFamily
from xi_core.models.source import SourceInfo
from xi_core.plugins import Registry
from xi_core.transport.rpc import Calls


class CachedModels:
    """Answers for the cache of one XI_HOME. `used` tells which replicas run here, and the artifact of each."""

    def __init__(self, worker: str, sources: Registry[SourceInfo], config: Settings, used: Callable[[], Mapping[str, str]]) -> None:
        self._worker, self._cache, self._used = worker, ModelCache(config.home_dir), used
        self._pulls = Pulls(worker, sources, config)

    def calls(self) -> Calls:
        """What it answers."""
        return {ListCache: self._list, RemoveCache: self._remove, **self._pulls.calls()}

    async def _list(self, command: ListCache) -> FoundModels:
        found = await in_thread(lambda: [model for model in self._cache.models() if _is_meant(model, command.names)])
        return FoundModels([self._status(model) for model in found])

    async def _remove(self, command: RemoveCache) -> FreedModels:
        found = [model for model in await in_thread(self._cache.models) if _is_meant(model, command.names)]
        found = [one for one in found if command.source in (None, one.source) and command.revision in (None, one.revision)]
        if not found:
            raise NotFound(f"'{command.name}' is not in the cache; `xi cached` shows what is", param="model_name")
        self._check_unused(found)
        freed = await in_thread(lambda: sum(self._cache.remove(one.source, one.id, one.revision) for one in found))
        return FreedModels(freed=freed)

    def _check_unused(self, models: list[CachedModel]) -> None:
        for model in models:
            folder = self._cache.path_of(model)
            users = [replica for replica, path in self._used().items() if path and Path(path).is_relative_to(folder)]
            if users:
                raise Conflict(
                    f"'{model.id}' is used by {', '.join(users)} on worker {self._worker}; terminate what uses it first", param="model_name"
                )

    def _status(self, model: CachedModel) -> CachedModelStatus:
        return CachedModelStatus(
            worker=self._worker,
            model_name=model.id,
            source=model.source,
            model_version=model.revision,
            path=str(self._cache.path_of(model)),
            files=len(model.files),
            size=model.size,
            created=model.created,
        )


def ids_of(name: str, families: Iterable[ModelFamily]) -> list[str]:
    """The ids that a name can have in a cache: those of the family's sources, or the name itself."""
    family = find_family(name, families)
    if family is None:
        return [name]
    return sorted({ref.id for spec in family.specs for ref in (spec.source, *spec.mirrors)})


def _is_meant(model: CachedModel, names: list[str]) -> bool:
    """Whether one of the names is its id, or the last part of it, in any case. No names mean all."""
    own = (model.id.lower(), model.id.lower().rpartition("/")[2])
    return not names or any(name.lower() in own for name in names)
