"""What lies on the workers' disks, as the supervisor answers for it: environments and cached models. All workers are asked at once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from xi_core.cluster import messages as m
from xi_core.cluster.cached_models import ids_of
from xi_core.cluster.executor import Executor
from xi_core.errors import NotFound, TransportError, Unavailable, XiError
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls

log = logging.getLogger(__name__)


class WorkerDisks:
    """Answers the commands of the control API that list and remove them."""

    def __init__(self, hub: PluginHub, executor: Executor) -> None:
        self._hub, self._executor = hub, executor

    def calls(self) -> Calls:
        """What it answers."""
        return {
            m.ListEnvironments: self._list_environments,
            m.RemoveEnvironment: self._remove_environment,
            m.ListCache: self._list_cache,
            m.RemoveCache: self._remove_cache,
        }

    async def _list_environments(self, command: m.ListEnvironments) -> m.FoundEnvironments:
        return m.FoundEnvironments([environment for answer in await self._listed(command) for environment in answer.environments])

    async def _remove_environment(self, command: m.RemoveEnvironment) -> m.Done:
        await self._removed(command)
        return m.Done()

    async def _list_cache(self, command: m.ListCache) -> m.FoundModels:
        asked = msgspec.structs.replace(command, names=ids_of(command.name, self._hub.families) if command.name else [])
        return m.FoundModels([model for answer in await self._listed(asked) for model in answer.models])

    async def _remove_cache(self, command: m.RemoveCache) -> m.FreedModels:
        asked = msgspec.structs.replace(command, names=ids_of(command.name, self._hub.families))
        return m.FreedModels(freed=sum(answer.freed for answer in await self._removed(asked)))

    async def _ask(self, command: msgspec.Struct) -> tuple[list[Any], list[XiError]]:
        """What the workers answered, and what else they raised; one that is lost meanwhile says neither, if another is there."""
        workers = dict(self._executor.workers)
        found = await asyncio.gather(*(worker.link.call(command) for worker in workers.values()), return_exceptions=True)
        answers, errors, lost = [], [], []
        for name, one in zip(workers, found, strict=True):
            if isinstance(one, TransportError):
                log.warning("worker %s did not answer: %s", name, one)
                lost.append(f"{name} ({one.message})")
            elif isinstance(one, XiError):
                errors.append(one)
            elif isinstance(one, BaseException):
                raise one
            else:
                answers.append(one)
        if lost and not answers and not errors:
            raise Unavailable(f"no worker answered: {', '.join(lost)}", retry_after=1.0)
        return answers, errors

    async def _listed(self, command: msgspec.Struct) -> list[Any]:
        answers, errors = await self._ask(command)
        if errors:
            raise errors[0]
        return answers

    async def _removed(self, command: msgspec.Struct) -> list[Any]:
        """Not to have it is an error only where no worker has it; one that can't let go of it keeps the others from nothing."""
        answers, errors = await self._ask(command)
        if not answers and not errors:
            raise Unavailable("no worker is connected, so nothing was removed", retry_after=1.0)
        refused = [error for error in errors if not isinstance(error, NotFound)]
        if refused or (errors and not answers):
            raise (refused or errors)[0]
        return answers
