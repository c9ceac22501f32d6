"""What clients ask of launches: begin one, end one, tell of them. Part of the supervisor."""

from __future__ import annotations

import asyncio
import logging
import time

from xi_core.api.control import LaunchSpec, ModelStatus
from xi_core.cluster import messages as m
from xi_core.cluster.executor import Executor
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.errors import Conflict, LaunchCancelled
from xi_core.models.catalog import normalised
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls

log = logging.getLogger(__name__)

STOP_MARGIN = 10.0
"""Seconds beyond the grace in which the replicas of a terminated launch must be gone."""


class Launching:
    """Answers commands about single launches. One that is asked for is resolved first, which takes a while, and then accepted."""

    def __init__(self, hub: PluginHub, executor: Executor, lifecycle: Lifecycle, grace: float) -> None:
        """`grace`: seconds that replicas of a terminated launch may have for what they run."""
        self._hub, self._executor, self._lifecycle, self._grace = hub, executor, lifecycle, grace
        self._resolving: dict[str, tuple[LaunchSpec, asyncio.Task[bool]]] = {}

    def calls(self) -> Calls:
        """What it answers."""
        return {
            m.Launch: self._launch,
            m.Terminate: self._terminate,
            m.ListModels: self._list_models,
            m.GetModel: self._get_model,
        }

    async def close(self) -> None:
        """Accept nothing any more."""
        tasks = [task for _, task in self._resolving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _launch(self, command: m.Launch) -> m.Launched:
        spec = normalised(command.spec)
        uid = spec.model_uid or ""
        await self._executor.settled()
        found = self._lifecycle.find(uid)
        if found is not None and not found.end and found.wanted.spec == spec:
            return m.Launched(uid, existed=True)
        if spec.model_engine:
            self._hub.engines.get(spec.model_engine, param="model_engine")  # before a word on who has the uid
        if uid in self._resolving and self._resolving[uid][0] != spec:
            raise Conflict(f"'{uid}' is being launched with another spec; choose another uid", param="model_uid")
        begins = uid not in self._resolving
        if begins:
            task = asyncio.create_task(self._resolve_and_accept(uid, spec))
            self._resolving[uid] = spec, task
            task.add_done_callback(lambda _: self._resolving.pop(uid, None))
        task = self._resolving[uid][1]
        await asyncio.wait({task})
        if task.cancelled():
            raise LaunchCancelled(f"'{uid}' was terminated before it was ready")
        existed = task.result() or not begins
        await self._executor.kept()
        return m.Launched(uid, existed)

    async def _resolve_and_accept(self, uid: str, spec: LaunchSpec) -> bool:
        """Answers whether it was there by then: a worker that came meanwhile may have told of it."""
        wanted = await self._executor.resolver.resolve(spec)
        before = self._lifecycle.find(uid)
        if before is not None and before.end:
            await self._executor.until(
                lambda: not self._lifecycle.has_live(uid), STOP_MARGIN, f"the replicas of the last '{uid}' are still stopping"
            )
        before = self._lifecycle.find(uid)
        self._executor.do(self._lifecycle.accept(time.monotonic(), wanted))  # nothing waits after this: what is accepted isn't cancelled
        log.info("launch %s: %s on %s, %d replica(s)", uid, wanted.model.describe(), wanted.engine, spec.replica)
        return self._lifecycle.find(uid) is before

    async def _terminate(self, command: m.Terminate) -> m.Done:
        uid = command.uid
        await self._executor.settled()
        if uid in self._resolving and self._resolving[uid][1].cancel() and self._lifecycle.find(uid) is None:
            return m.Done()  # else there is one that it was to follow, or that would have been in its way
        launch = self._lifecycle.known(uid)
        self._executor.do(self._lifecycle.terminate(time.monotonic(), uid))
        await self._executor.kept()
        gone = f"'{uid}' is stopping, but its replicas aren't gone yet"
        await self._executor.until(lambda: not launch.live, self._grace + STOP_MARGIN, gone)  # another of this name may run by then
        return m.Done()

    async def _list_models(self, command: m.ListModels) -> m.Models:
        return m.Models([launch.status() for launch in self._lifecycle.listed()])

    async def _get_model(self, command: m.GetModel) -> ModelStatus:
        return self._lifecycle.known(command.uid).status()
