"""The Python client of a running xi: launch models, watch them, talk to them. Called by the CLI and by users' programs.

    from xi_core.client import Client

    client = Client("http://127.0.0.1:9997")
    client.launch("xi-tiny")
    for delta in client.chat("xi-tiny", [{"role": "user", "content": "Hello!"}], stream=True):
        print(delta.text, end="")

Synchronous; the wire below is `xi_core.endpoint`. A client may be shared between threads. Leaving a call early (Ctrl-C, closing a stream)
closes its connection, which makes the server stop generating.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, suppress
from typing import Any, Literal, TypeVar, overload
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from xi_core.api.control import (
    CachedModelList,
    CachedModelStatus,
    CacheRemoval,
    ClusterInfo,
    DrainOrder,
    EngineStatus,
    EnvironmentStatus,
    JoinTokenAnswer,
    JoinTokenOrder,
    LaunchAnswer,
    LaunchSpec,
    LogPart,
    MemberRole,
    ModelStatus,
    PlacementReport,
    RegisterAnswer,
    RegisterOrder,
    Registration,
    ReplicaCount,
    WorkerStatus,
)
from xi_core.api.openai import ChatCompletion, Completion, Model, ModelList, Usage
from xi_core.endpoint import Endpoint
from xi_core.errors import ChannelClosed, ConfigError, ErrorBody, LaunchCancelled, ModelNotFound, Unavailable, XiError

CONTROL_TIMEOUT = 60.0
"""Longest silence of the server on anything but generation, in seconds."""
POLL_INTERVAL = 0.2
POLL_PATIENCE = 15.0
"""While a launch is watched, a server that doesn't answer for so long is given up: less than this and it may be restarting."""

SETTLE = 2.0
"""Most seconds for the gateway's routing table to follow a launch that is READY."""

T = TypeVar("T")
Progress = Callable[[ModelStatus], None]
"""Called with the launch's status at every poll while `launch` waits."""


class Delta(Struct, kw_only=True):
    """One piece of a streamed answer. `finish_reason` comes with the last piece of a choice, `usage` after all (where asked for)."""

    text: str = ""
    reasoning: str = ""
    index: int = 0
    tool_calls: list[dict[str, Any]] = msgspec.field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None


Deltas = Generator[Delta, None, None]


class Client:
    """A client of the xi server at `endpoint` (`http://host:port`). `timeout`: longest silence while it generates, in seconds.

    Every method raises the server's own error by its class (`ModelNotFound`, `InvalidRequest`, …), `Unavailable` if nobody answers at the
    endpoint, `ProtocolMismatch` if something answers that isn't xi, and `DeadlineExceeded` after the timeout.
    """

    def __init__(self, endpoint: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        self._server = Endpoint(endpoint, api_key)
        self.endpoint = self._server.url
        self.timeout = timeout

    # ---- control ----------------------------------------------------------------------------------

    def launch(self, spec: LaunchSpec | str, *, wait: bool = True, on_progress: Progress | None = None, **fields: Any) -> ModelStatus:
        """Launch a model; with `wait`, until it is READY.

        `spec` is a whole `LaunchSpec`, or the model's name, directory or `.gguf` file with `fields` of `LaunchSpec` beside it; other fields
        are the engine's options. Raises `LaunchError` as the server says, `LaunchFailed` or `LaunchCancelled` while it waits.
        """
        uid = self.start(spec if isinstance(spec, LaunchSpec) else _spec(spec, fields))
        return self.wait_ready(uid, on_progress) if wait else self.model(uid)

    def start(self, spec: LaunchSpec) -> str:
        """Ask for a launch and return its uid as soon as it is accepted."""
        return self._call(LaunchAnswer, "POST", "/v1/models?wait_ready=false", _launch_body(spec)).model_uid

    def wait_ready(self, uid: str, on_progress: Progress | None = None) -> ModelStatus:
        """Wait until the launch is READY. Raises `LaunchFailed` with the reason, or `LaunchCancelled`. The server bounds the wait."""
        answered = time.monotonic()
        while True:
            try:
                status = self.model(uid)
            except ModelNotFound:
                raise LaunchCancelled(f"model '{uid}' was terminated before it was ready") from None
            except (Unavailable, ChannelClosed):
                if time.monotonic() - answered > POLL_PATIENCE:
                    raise
            else:
                answered = time.monotonic()
                if on_progress is not None:
                    on_progress(status)
                if status.is_ready():
                    self._settle(uid)
                    return status
            time.sleep(POLL_INTERVAL)

    def _settle(self, uid: str) -> None:
        """Wait until the gateway names the model's endpoints and `/ready` isn't 503, so that the next request finds the model."""
        deadline = time.monotonic() + SETTLE
        while time.monotonic() < deadline:
            with suppress(Unavailable, ChannelClosed):  # the model is READY, whatever happens to the gateway now
                served = self._call(_Served, "GET", f"/v1/models/{quote(uid, safe='')}").endpoints
                if served != [] and self._server.status("/ready", self._patience()) != 503:
                    return
            time.sleep(POLL_INTERVAL / 4)

    def models(self) -> list[Model]:
        """All launches, in whatever state."""
        return self._call(ModelList, "GET", "/v1/models").data

    def model(self, uid: str) -> ModelStatus:
        """One launch with its replicas. Raises `ModelNotFound`."""
        return self._call(ModelStatus, "GET", f"/v1/models/{quote(uid, safe='')}")

    def terminate(self, uid: str) -> None:
        """End a launch and wait until its replicas are gone. Raises `ModelNotFound`."""
        self._server.call(msgspec.Raw, "DELETE", f"/v1/models/{quote(uid, safe='')}", None, self.timeout)

    def scale(self, uid: str, replica: int) -> None:
        """Have so many replicas of a launch; returns when it is accepted. Raises `ModelNotFound`, `NoPlacement`, `Conflict`."""
        self._call(msgspec.Raw, "PUT", f"/v1/models/{quote(uid, safe='')}/replicas", ReplicaCount(replica=replica))

    def log(self, uid: str, *, replica: int | None = None, rank: int = 0, start: int = -65536) -> LogPart:
        """A part of a replica's log from byte `start` on; below 0: so many before the end. Raises `ModelNotFound`, `InvalidRequest`."""
        query = urlencode({"rank": rank, "start": start} | ({} if replica is None else {"replica": replica}))
        return self._call(LogPart, "GET", f"/v1/models/{quote(uid, safe='')}/logs?{query}")

    def explain(self, spec: LaunchSpec) -> list[PlacementReport]:
        """Where each replica of a launch would go, and why; they end with the first that finds no place. Nothing is started."""
        return self._call(list[PlacementReport], "POST", "/v1/placements", _launch_body(spec))

    def workers(self) -> list[WorkerStatus]:
        """The machines of the cluster."""
        return self._call(list[WorkerStatus], "GET", "/v1/workers")

    def drain(self, worker: str, seconds: float = 600.0, *, undo: bool = False) -> None:
        """Move all replicas from a worker to others; returns at once. Raises `WorkerNotFound`."""
        self._call(msgspec.Raw, "POST", f"/v1/workers/{quote(worker, safe='')}/drain", DrainOrder(seconds=seconds, undo=undo))

    def environments(self) -> list[EnvironmentStatus]:
        """The environments of models, on all workers."""
        return self._call(list[EnvironmentStatus], "GET", "/v1/virtualenvs")

    def remove_environment(self, name: str) -> None:
        """Delete an environment from every worker that has it. Raises `NotFound`, `Conflict` where it is used."""
        self._call(msgspec.Raw, "DELETE", f"/v1/virtualenvs/{quote(name, safe='')}")

    def cached(self, model: str | None = None) -> list[CachedModelStatus]:
        """The downloaded models on all workers; with `model`, a hub id or a family's name, only its."""
        query = _query({"model_name": model}) if model else ""
        return self._call(CachedModelList, "GET", f"/v1/cache/models{query}").models

    def remove_cached(self, model: str, source: str | None = None, revision: str | None = None) -> int:
        """Delete a downloaded model from every worker. Answers the bytes that are free now. Raises `NotFound`, `Conflict` (in use)."""
        given = {name: value for name, value in {"model_name": model, "source": source, "revision": revision}.items() if value}
        return self._call(CacheRemoval, "DELETE", f"/v1/cache/models{_query(given)}").freed

    def stop_cluster(self) -> None:
        """Stop every worker with what it runs, and the servers."""
        self._call(msgspec.Raw, "POST", "/v1/cluster/stop")

    def engines(self, model: str | None = None, **filters: str | None) -> list[EngineStatus]:
        """The engines, and whether they run on the server's workers; with `model`, also which of its specs each takes.

        `filters`: `model_engine`, `model_format`, `size_in_billions`, `quantization`, `model_type`.
        """
        given = {name: value for name, value in {"model": model, **filters}.items() if value}
        return self._call(list[EngineStatus], "GET", f"/v1/engines{_query(given)}")

    def registrations(self, model_type: str | None = None, *, engine: str | None = None) -> list[Registration]:
        """The models that can be launched by name, of one type or all; with `engine`, those that it runs where it is installed."""
        of_type = f"/{quote(model_type, safe='')}" if model_type else ""
        return self._call(list[Registration], "GET", f"/v1/model_registrations{of_type}{_query({'engine': engine} if engine else {})}")

    def registration(self, model_type: str, name: str) -> Registration:
        """One of them with all of its specs. Raises `NotFound`."""
        return self._call(Registration, "GET", f"/v1/model_registrations/{quote(model_type, safe='')}/{quote(name, safe='')}")

    def register(self, model_type: str, text: str, *, persist: bool = True) -> RegisterAnswer:
        """Register the model in `text`, a family file. Raises `InvalidRequest` (line and field named), `Conflict`."""
        path = f"/v1/model_registrations/{quote(model_type, safe='')}"
        return self._call(RegisterAnswer, "POST", path, RegisterOrder(model=text, persist=persist))

    def unregister(self, model_type: str, name: str) -> None:
        """Take a registered model out again. Raises `NotFound`, `Conflict` for a built-in one."""
        self._call(msgspec.Raw, "DELETE", f"/v1/model_registrations/{quote(model_type, safe='')}/{quote(name, safe='')}")

    def cluster(self) -> ClusterInfo:
        """The server's version and processes."""
        return self._call(ClusterInfo, "GET", "/v1/cluster/info")

    def join_token(self, role: MemberRole = "worker", ttl: float = 3600.0) -> JoinTokenAnswer:
        """A token with which one more worker or gateway may join, within `ttl` seconds. Raises `Forbidden`, `InvalidRequest`."""
        return self._call(JoinTokenAnswer, "POST", "/v1/cluster/join-tokens", JoinTokenOrder(role=role, ttl=ttl))

    def health(self) -> bool:
        """Whether the server says that it is well. Raises `Unavailable` only if nobody answers."""
        return self._server.status("/health", self._patience()) == 200

    def reachable(self) -> bool:
        """Whether something accepts connections at the endpoint; False only where they are refused."""
        return self._server.reachable()

    def _call(self, wanted: type[T], method: str, path: str, body: Any = None) -> T:
        return self._server.call(wanted, method, path, body, self._patience())

    def _patience(self) -> float:
        return min(self.timeout, CONTROL_TIMEOUT)

    # ---- generation -------------------------------------------------------------------------------

    @overload
    def chat(
        self, model: str, messages: Iterable[Mapping[str, Any]], *, stream: Literal[False] = False, **fields: Any
    ) -> ChatCompletion: ...

    @overload
    def chat(self, model: str, messages: Iterable[Mapping[str, Any]], *, stream: Literal[True], **fields: Any) -> Deltas: ...

    def chat(self, model: str, messages: Iterable[Mapping[str, Any]], *, stream: bool = False, **fields: Any) -> ChatCompletion | Deltas:
        """A chat completion, or with `stream` its deltas as they come. `fields` are those of the API (`temperature`, `max_tokens`, …)."""
        body = {"model": model, "messages": list(messages), "stream": stream, **fields}
        if stream:
            return _deltas(self._server.stream(_Event, "/v1/chat/completions", body, self.timeout))
        return self._server.call(ChatCompletion, "POST", "/v1/chat/completions", body, self.timeout)

    @overload
    def complete(self, model: str, prompt: str | list[int], *, stream: Literal[False] = False, **fields: Any) -> Completion: ...

    @overload
    def complete(self, model: str, prompt: str | list[int], *, stream: Literal[True], **fields: Any) -> Deltas: ...

    def complete(self, model: str, prompt: str | list[int], *, stream: bool = False, **fields: Any) -> Completion | Deltas:
        """The completion of a text or of token ids, or with `stream` its deltas."""
        body = {"model": model, "prompt": prompt, "stream": stream, **fields}
        if stream:
            return _deltas(self._server.stream(_Event, "/v1/completions", body, self.timeout))
        return self._server.call(Completion, "POST", "/v1/completions", body, self.timeout)


def _query(given: dict[str, str]) -> str:
    return f"?{urlencode(given)}" if given else ""


def _spec(name: str, fields: dict[str, Any]) -> LaunchSpec:
    known = {f.name for f in msgspec.structs.fields(LaunchSpec)}
    options = {**fields.pop("options", {}), **{key: value for key, value in fields.items() if key not in known}}
    return LaunchSpec(model_name=name, options=options, **{key: value for key, value in fields.items() if key in known})


def _launch_body(spec: LaunchSpec) -> dict[str, Any]:
    """The body of `POST /v1/models`: the spec's fields as xinference-client names them, the engine's options beside them."""
    body: dict[str, Any] = msgspec.to_builtins(spec)
    options = {name.replace("-", "_"): value for name, value in body.pop("options", {}).items()}
    if "env" in body:
        body["envs"] = body.pop("env")
    for name in options:
        if name in body or name in LaunchSpec.__struct_fields__:
            raise ConfigError(f"'{name}' is a field of the launch; it can't be an engine option too", param=name)
    return {**options, **body}


# ---- answers --------------------------------------------------------------------------------------


class _Served(Struct):
    """What the gateway adds to a launch's status: the routes that it serves the model on. None: it doesn't say."""

    endpoints: list[str] | None = None


class _Piece(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    delta: _Piece = msgspec.field(default_factory=_Piece)
    finish_reason: str | None = None


class _Event(Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    error: ErrorBody | None = None


def _deltas(events: Generator[_Event, None, None]) -> Deltas:
    with closing(events):
        for event in events:
            yield from _read(event)


def _read(event: _Event) -> Deltas:
    """The deltas of one event. Raises the error that it carries."""
    if event.error is not None:
        raise XiError.from_body(event.error)
    for choice in event.choices:
        piece = choice.delta
        yield Delta(
            text=choice.text or piece.content or "",
            reasoning=piece.reasoning_content or "",
            index=choice.index,
            tool_calls=piece.tool_calls or [],
            finish_reason=choice.finish_reason,
        )
    if event.usage is not None:
        yield Delta(usage=event.usage)
