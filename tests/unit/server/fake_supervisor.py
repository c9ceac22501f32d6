"""A supervisor of the in-process transport that answers as a test tells it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fake_replica import INPROC, FakeReplica, numbers

from xi_core.api.control import LaunchSpec, ModelStatus
from xi_core.cluster.messages import (
    ANSWERS,
    Cluster,
    Done,
    Engines,
    GetCluster,
    GetModel,
    Launch,
    Launched,
    ListEngines,
    ListModels,
    ModelRoute,
    Models,
    Sleep,
    Subscribe,
    TableUpdate,
    Terminate,
)
from xi_core.importing import import_path
from xi_core.transport.rpc import LinkServer, Vocabulary


class FakeSupervisor:
    """Publishes the table that a test sets, and answers commands from `statuses`."""

    def __init__(self, endpoint: str | None = None, transport: str = INPROC) -> None:
        self.endpoint = endpoint or f"inproc://supervisor-{next(numbers)}"
        self.epoch, self.version = f"epoch-{next(numbers)}", 1
        self.routes: dict[str, ModelRoute] = {}
        self.statuses: dict[str, ModelStatus] = {}
        self.launched: list[LaunchSpec] = []
        self.asked: list[Any] = []
        self.subscriptions = 0
        self.links: list[Any] = []
        self.on_launch: Callable[[LaunchSpec], Awaitable[None]] | None = None
        self.on_sleep: Callable[[Sleep], None] = lambda command: None
        self.engines: list[Any] = []
        self.processes: list[Any] = []
        carrier = import_path(transport)()
        self.server = LinkServer(carrier, self.endpoint, Vocabulary(ANSWERS, [TableUpdate]), self._accept, self.links.remove)

    def _accept(self, link: Any) -> Any:
        self.links.append(link)

        async def subscribe(command: Subscribe) -> Done:
            self.subscriptions += 1
            link.notify(self.snapshot())
            return Done()

        return {
            Subscribe: subscribe, Launch: self._launch, GetModel: self._get, ListModels: self._list,
            Terminate: self._terminate, ListEngines: self._engines, GetCluster: self._cluster, Sleep: self._sleep,
        }  # fmt: skip

    def snapshot(self) -> TableUpdate:
        return TableUpdate(epoch=self.epoch, version=self.version, full=True, models=list(self.routes.values()))

    def publish(self, *routes: ModelRoute, removed: tuple[str, ...] = ()) -> None:
        """Change the table and tell every gateway."""
        self.version += 1
        for route in routes:
            self.routes[route.uid] = route
        for uid in removed:
            self.routes.pop(uid, None)
        self.tell(TableUpdate(epoch=self.epoch, version=self.version, full=False, models=list(routes), removed=list(removed)))

    def tell(self, update: TableUpdate) -> None:
        for link in self.links:
            link.notify(update)

    def serve(self, uid: str, *replicas: FakeReplica, state: str = "READY", detail: str = "") -> None:
        """Publish a model with these replicas."""
        endpoints = ["/v1/chat/completions", "/v1/completions"]
        self.publish(ModelRoute(uid=uid, state=state, detail=detail, replicas=[r.route for r in replicas], endpoints=endpoints))
        self.set_status(uid, state, error=detail or None)

    def set_status(self, uid: str, state: Any, error: str | None = None) -> None:
        self.statuses[uid] = ModelStatus(
            model_uid=uid, spec=LaunchSpec(model_name="xi-tiny", model_uid=uid), state=state, created=1700000000, engine="llama.cpp",
            model_format="ggufv2", size_in_billions="0.001", context_length=512, error=error,
        )  # fmt: skip

    async def _launch(self, command: Launch) -> Launched:
        self.launched.append(command.spec)
        uid = command.spec.model_uid or command.spec.model_name
        existed = uid in self.statuses
        self.set_status(uid, "PENDING")
        if self.on_launch is not None:
            await self.on_launch(command.spec)
        return Launched(uid, existed=existed)

    async def _get(self, command: GetModel) -> ModelStatus:
        from xi_core.errors import ModelNotFound

        self.asked.append(command)
        if command.uid not in self.statuses:
            raise ModelNotFound(f"no model '{command.uid}'")
        return self.statuses[command.uid]

    async def _list(self, command: ListModels) -> Models:
        return Models(list(self.statuses.values()))

    async def _terminate(self, command: Terminate) -> Done:
        self.asked.append(command)
        await self._get(GetModel(command.uid))
        del self.statuses[command.uid]
        self.publish(removed=(command.uid,))
        return Done()

    async def _sleep(self, command: Sleep) -> Done:
        self.asked.append(command)
        self.on_sleep(command)
        return Done()

    async def _engines(self, command: ListEngines) -> Engines:
        self.asked.append(command)
        return Engines(self.engines)

    async def _cluster(self, command: GetCluster) -> Cluster:
        return Cluster(self.processes)

    async def close(self) -> None:
        await self.server.close()
