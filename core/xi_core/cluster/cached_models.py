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
from xi_core.models.cache import CachedModel, ModelCache, Stored
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
        return FoundModels(await in_thread(lambda: self._found(command)))

    def _found(self, command: ListCache) -> list[CachedModelStatus]:
        models = self._cache.models()
        found = [self._status(model) for model in models if _is_meant(model.id, command.names)]
        whole = {(model.source, model.id, model.revision) for model in models}
        others = [one for one in self._cache.stored() if (one.source, one.id, one.revision) not in whole] if command.incomplete else []
        return found + [self._rest(one) for one in others if _is_meant(one.id, command.names)]

    async def _remove(self, command: RemoveCache) -> FreedModels:
        """Also what is damaged or came in part: it takes room, and a launch of it may have told to remove it."""
        found = [one for one in await in_thread(self._cache.stored) if _is_meant(one.id, command.names)]
        found = [one for one in found if command.source in (None, one.source) and command.revision in (None, one.revision)]
        if not found:
            raise NotFound(f"'{command.name}' is not in the cache; `xi cached` shows what is", param="model_name")
        self._check_unused(found)
        freed = await in_thread(lambda: sum(self._cache.remove(one.source, one.id, one.revision) for one in found))
        return FreedModels(freed=freed)

    def _check_unused(self, models: list[Stored]) -> None:
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

    def _rest(self, one: Stored) -> CachedModelStatus:
        """Of what isn't complete: how much of it there is."""
        folder, sizes = self._cache.sizes_of(one)
        return CachedModelStatus(
            worker=self._worker,
            model_name=one.id,
            source=one.source,
            model_version=one.revision,
            path=str(folder),
            files=len(sizes),
            size=sum(sizes),
            created=0.0,
            complete=False,
        )


def ids_of(name: str, families: Iterable[ModelFamily]) -> list[str]:
    """The ids that a name can have in a cache: those of the family's sources, or the name itself."""
    family = find_family(name, families)
    if family is None:
        return [name]
    return sorted({ref.id for spec in family.specs for ref in (spec.source, *spec.mirrors)})


def _is_meant(id: str, names: list[str]) -> bool:
    """Whether one of the names is this id, or the last part of it, in any case. No names mean all."""
    own = (id.lower(), id.lower().rpartition("/")[2])
    return not names or any(name.lower() in own for name in names)
