"""A gateway over the in-process transport, with replicas and a supervisor that do what a test tells them."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xi_core.cluster.routing import ReplicaView, Router, RouteRequest, RouterInfo
from xi_core.config import Settings
from xi_core.hookspecs import hookimpl
from xi_core.plugins import PluginHub
from xi_core.testing.waiting import until
from xi_core.transport.base import TransportInfo
from xi_server.app import control_app, create_app
from xi_server.gateway import Gateway

sys.path.insert(0, str(Path(__file__).parent))

from asgi_calls import Call, chat, control
from fake_replica import DONE, EVENT, INPROC, SSE, ZMQ, FakeReplica, answering, opened
from fake_supervisor import FakeSupervisor

ROUTERS = "xi_server_test_routers"


class FirstRouter(Router):
    """Takes the first replica, and remembers what it was told."""

    made: ClassVar[list[FirstRouter]] = []

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[tuple[str, int]] = []
        FirstRouter.made.append(self)

    def choose(self, request: RouteRequest, replicas: Any) -> str:
        self.request, self.views = request, list(replicas)
        view: ReplicaView = replicas[0]
        return view.replica_id

    def on_start(self, request: RouteRequest, replica_id: str) -> None:
        self.started.append(replica_id)

    def on_end(self, request: RouteRequest, replica_id: str, tokens: int) -> None:
        self.ended.append((replica_id, tokens))


class TestPlugin:
    """The in-process transport and the router above."""

    __test__ = False

    @hookimpl
    def xi_transports(self) -> list[TransportInfo]:
        return [
            TransportInfo(name="inproc", transport=INPROC, schemes=("inproc",)),
            TransportInfo(name="zmq", transport=ZMQ, schemes=("ipc",)),
        ]

    @hookimpl
    def xi_routers(self) -> list[RouterInfo]:
        return [RouterInfo(name="first", router=f"{ROUTERS}:FirstRouter")]


@dataclass
class Stage:
    """What a test works on."""

    gateway: Gateway
    app: Any
    supervisor: FakeSupervisor

    async def serve(self, uid: str, *replicas: FakeReplica, **more: str) -> None:
        """Publish a model and wait until the gateway has it."""
        self.supervisor.serve(uid, *replicas, **more)
        version = self.supervisor.version
        await until(lambda: self.gateway.table.version == version)

    def start(self, body: bytes | None = None, **more: Any) -> Call:
        """Begin a chat request."""
        call = Call(body=chat() if body is None else body, **more)
        call.start(self.app)
        return call

    async def ask(self, body: bytes | None = None, **more: Any) -> Call:
        """A whole chat request."""
        return await Call(body=chat() if body is None else body, **more).run(self.app)

    async def control(self, method: str, path: str, body: Any = None, query: bytes = b"") -> Call:
        """A whole call of the control API, whose status must be one that the OpenAPI document tells of."""
        call = await control(method, path, body, query).run(self.app)
        told = declared(self.gateway, method, path)
        assert told is None or str(call.status) in told, f"{method} {path} answers {call.status}, and may answer {told}"
        return call


_declared: list[tuple[re.Pattern[str], dict[str, Any]]] = []
"""Every path of the control API as a pattern, with its methods: the same for every gateway."""


def declared(gateway: Gateway, method: str, path: str) -> list[str] | None:
    """The statuses that this route may answer with, by the OpenAPI document; None where there is no such route."""
    if not _declared:
        paths = control_app(gateway).openapi()["paths"]
        _declared.extend((re.compile(re.sub(r"{\w+}", "[^/]+", one)), methods) for one, methods in paths.items())
    methods = next((methods for pattern, methods in _declared if pattern.fullmatch(path)), {})
    operation = methods.get("get" if method == "HEAD" else method.lower())
    return None if operation is None else list(operation["responses"])


MakeStage = Callable[..., Awaitable[Stage]]


@pytest.fixture
async def make_stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeStage]:
    """Makes a gateway with a supervisor; settings as keyword arguments."""
    module = types.ModuleType(ROUTERS)
    module.FirstRouter = FirstRouter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, ROUTERS, module)
    FirstRouter.made.clear()
    stages: list[Stage] = []

    async def make(**settings: Any) -> Stage:
        hub = PluginHub()
        hub.register(TestPlugin(), "test")
        supervisor = FakeSupervisor()
        gateway = Gateway(Settings(router="first", **settings), hub, supervisor.endpoint)
        gateway.start()
        stage = Stage(gateway, create_app(gateway), supervisor)
        stages.append(stage)
        await until(gateway.supervisor.subscribed.is_set)
        return stage

    yield make
    for stage in stages:
        await stage.gateway.close()
        await stage.supervisor.close()


@pytest.fixture
async def stage(make_stage: MakeStage) -> Stage:
    """A gateway with the default settings."""
    return await make_stage()


@pytest.fixture
async def replica() -> AsyncIterator[Callable[..., FakeReplica]]:
    """Makes replicas, and closes them."""
    made: list[FakeReplica] = []

    def make(*arguments: Any, **more: Any) -> FakeReplica:
        made.append(FakeReplica(*arguments, **more))
        return made[-1]

    yield make
    for one in made:
        await one.close()


@pytest.fixture
def kit() -> types.SimpleNamespace:
    """The names above, for tests that can't import this file."""
    return types.SimpleNamespace(
        Call=Call, DONE=DONE, EVENT=EVENT, FakeReplica=FakeReplica, FakeSupervisor=FakeSupervisor, FirstRouter=FirstRouter, SSE=SSE, ZMQ=ZMQ,
        answering=answering, chat=chat, control=control, opened=opened, until=until,
    )  # fmt: skip
