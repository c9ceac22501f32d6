"""A gateway over the in-process transport, with replicas and a supervisor that do what a test tells them."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

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
    ReplicaRoute,
    Sleep,
    Subscribe,
    TableUpdate,
    Terminate,
)
from xi_core.cluster.routing import ReplicaView, Router, RouteRequest, RouterInfo
from xi_core.config import Settings
from xi_core.hookspecs import hookimpl
from xi_core.importing import import_path
from xi_core.plugins import PluginHub
from xi_core.testing.waiting import until
from xi_core.transport.base import TransportInfo
from xi_core.transport.rpc import LinkServer, Vocabulary
from xi_core.wire.frames import Abort, Data, End, Frame, Load, Open, Ping, Pong, Step, Submit, decode_from_gateway, encode
from xi_server.app import create_app
from xi_server.gateway import Gateway

INPROC = "xi_plugins.transports.inproc:InprocTransport"
SSE = "text/event-stream; charset=utf-8"
ROUTERS = "xi_server_test_routers"

_numbers = itertools.count(1)


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
        return [TransportInfo(name="inproc", transport=INPROC, schemes=("inproc",))]

    @hookimpl
    def xi_routers(self) -> list[RouterInfo]:
        return [RouterInfo(name="first", router=f"{ROUTERS}:FirstRouter")]


class FakeReplica:
    """Answers pings; keeps submissions and aborts; `script` is called for each submission."""

    def __init__(
        self,
        replica_id: str = "r1",
        script: Callable[[FakeReplica, Submit], None] | None = None,
        transport: str = INPROC,
        endpoint: str = "",
    ) -> None:
        self.replica_id = replica_id
        self.transport = transport
        self.incarnation = f"life-{replica_id}-{next(_numbers)}"
        self.answering = self.incarnation
        self.load = Load(slots=4)
        self.silent = False
        self.submitted: list[Submit] = []
        self.aborted: list[int] = []
        self.pings = 0
        self.script = script
        self._peer = b""
        self.listen(endpoint or f"inproc://replica-{next(_numbers)}")

    def listen(self, endpoint: str) -> None:
        self.listener = import_path(self.transport)().listen(endpoint, self._take)

    @property
    def route(self) -> ReplicaRoute:
        return ReplicaRoute(
            replica_id=self.replica_id, incarnation=self.incarnation, endpoint=self.listener.endpoint, transport=self.transport, slots=4
        )

    def _take(self, peer: bytes, message: bytes) -> None:
        self._peer = peer
        said = decode_from_gateway(message)
        if isinstance(said, Ping):
            self.pings += 1
            if not self.silent:
                self.listener.send(peer, encode(Pong(said.seq, self.answering, self.load)))
        elif isinstance(said, Submit):
            self.submitted.append(said)
            if self.script is not None:
                self.script(self, said)
        elif isinstance(said, Abort):
            self.aborted.append(said.id)

    def send(self, *frames: Frame) -> None:
        """One step with these frames."""
        self.listener.send(self._peer, encode(Step(list(frames))))

    def send_bytes(self, message: bytes) -> None:
        self.listener.send(self._peer, message)

    def answer(self, submit: Submit, status: int = 200, body: bytes = b'{"ok":true}', retry_after: float | None = None) -> None:
        """A whole answer in one step."""
        opened = Open(submit.id, status, "application/json", 3, retry_after)
        self.send(opened, Data(submit.id, body, 2), End(submit.id, "stop"))

    async def close(self) -> None:
        await self.listener.close()


def answering(status: int = 200, body: bytes = b'{"ok":true}', retry_after: float | None = None) -> Callable[[FakeReplica, Submit], None]:
    """A script that answers each request at once."""
    return lambda replica, submit: replica.answer(submit, status, body, retry_after)


class FakeSupervisor:
    """Publishes the table that a test sets, and answers commands from `statuses`."""

    def __init__(self, endpoint: str | None = None, transport: str = INPROC) -> None:
        self.endpoint = endpoint or f"inproc://supervisor-{next(_numbers)}"
        self.epoch, self.version = f"epoch-{next(_numbers)}", 1
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
        self.set_status(uid, "PENDING")
        if self.on_launch is not None:
            await self.on_launch(command.spec)
        return Launched(uid)

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


@dataclass
class Call:
    """One request to an ASGI application, driven by the test."""

    path: str = "/v1/chat/completions"
    body: bytes | None = None
    method: str = "POST"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    query: bytes = b""
    stalled: bool = False
    """The client doesn't read: each send of a body waits."""
    direct: Callable[[Call], Callable[[bytes], bool]] | None = None
    """The server's own way to write a chunk, as `xi_server.serve` offers it."""

    def __post_init__(self) -> None:
        self.status = 0
        self.answer_headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.whole = False
        self.left = asyncio.Event()
        self.reading = asyncio.Event()
        self.sent_body = False
        self.aborted = False
        if not self.stalled:
            self.reading.set()

    def start(self, app: Any) -> asyncio.Task[None]:
        scope: dict[str, Any] = {
            "type": "http", "http_version": "1.1", "method": self.method, "path": self.path, "raw_path": self.path.encode(), "scheme": "http",
            "query_string": self.query, "headers": self.headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 9997), "root_path": "",
            "state": {"abort": self._abort},
        }  # fmt: skip
        direct = self.direct
        if direct is not None:
            scope["state"]["direct"] = lambda: direct(self)
        self.task = asyncio.create_task(app(scope, self._receive, self._send))
        return self.task

    async def run(self, app: Any) -> Call:
        async with asyncio.timeout(10):
            await self.start(app)
        return self

    def leave(self) -> None:
        """Close the connection."""
        self.left.set()

    @property
    def body_text(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body_text)

    @property
    def error(self) -> Any:
        return self.json["error"]

    def _abort(self) -> None:
        self.aborted = True
        self.left.set()

    async def _receive(self) -> dict[str, Any]:
        if not self.sent_body:
            self.sent_body = True
            return {"type": "http.request", "body": self.body or b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and not self.reading.is_set():
            left, reads = asyncio.create_task(self.left.wait()), asyncio.create_task(self.reading.wait())
            await asyncio.wait([left, reads], return_when=asyncio.FIRST_COMPLETED)
            left.cancel(), reads.cancel()
        if self.left.is_set():
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.answer_headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.parts.append(message.get("body", b""))
            self.whole = not message.get("more_body", False)


def chat(model: str = "m", **fields: Any) -> bytes:
    """The body of a chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}).encode()


def control(method: str, path: str, body: Any = None, query: bytes = b"") -> Call:
    """A call of the control API."""
    return Call(path=path, method=method, body=None if body is None else json.dumps(body).encode(), query=query)


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
        """A whole call of the control API."""
        return await control(method, path, body, query).run(self.app)


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
        Call=Call, FakeReplica=FakeReplica, FakeSupervisor=FakeSupervisor, FirstRouter=FirstRouter, SSE=SSE, answering=answering,
        chat=chat, control=control, until=until,
    )  # fmt: skip
