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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar, overload
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from xi_core.api.control import LaunchAnswer, LaunchSpec, LogPart, ModelStatus, PlacementReport, ReplicaCount
from xi_core.api.openai import ChatCompletion, Completion, Model, ModelList
from xi_core.api.sleep import SleepAnswer, SleepOrder
from xi_core.cluster_client import ClusterClient
from xi_core.deltas import Delta, Deltas, Event, deltas
from xi_core.errors import ChannelClosed, ConfigError, LaunchCancelled, ModelNotFound, NotFound, ProtocolMismatch, Unavailable

T = TypeVar("T")

__all__ = ["Client", "Delta", "Deltas", "Progress"]

POLL_INTERVAL = 0.2
POLL_PATIENCE = 15.0
"""While a launch is watched, a server that doesn't answer for so long is given up: less than this and it may be restarting."""

SETTLE = 2.0
"""Most seconds for the gateway's routing table to follow a launch that is READY."""

Progress = Callable[[ModelStatus], None]
"""Called with the launch's status at every poll while `launch` waits."""


class Client(ClusterClient):
    """A client of the xi server at `endpoint` (`http://host:port`). `timeout`: longest silence while it generates, in seconds.

    It launches models and talks to them; what watches over the cluster is in `ClusterClient`, and so are the errors that any method raises.
    """

    # ---- launches ---------------------------------------------------------------------------------

    def launch(self, spec: LaunchSpec | str, *, wait: bool = True, on_progress: Progress | None = None, **fields: Any) -> ModelStatus:
        """Launch a model; with `wait`, until it is READY. One that is launched already is as `wait_ready` has it.

        `spec` is a whole `LaunchSpec`, or the model's name, directory or `.gguf` file with `fields` of `LaunchSpec` beside it; other fields
        are the engine's options. Raises `LaunchError` as the server says, `LaunchFailed` or `LaunchCancelled` while it waits.
        """
        uid = self.start(spec if isinstance(spec, LaunchSpec) else _spec(spec, fields))
        return self.wait_ready(uid, on_progress) if wait else self.model(uid)

    def start(self, spec: LaunchSpec) -> str:
        """Ask for a launch and return its uid as soon as it is accepted."""
        return self.begin(spec).model_uid

    def begin(self, spec: LaunchSpec) -> LaunchAnswer:
        """As `start`, and whether the same launch existed before, or was begun by another request."""
        return self._call(LaunchAnswer, "POST", "/v1/models?wait_ready=false", _launch_body(spec))

    def wait_ready(self, uid: str, on_progress: Progress | None = None) -> ModelStatus:
        """Wait until the launch is READY. Raises `LaunchFailed` with the reason, or `LaunchCancelled`.

        The server bounds the time of a first launch. One that was READY before may be `stuck`: a worker is away, there is no room, or a
        replica has ended again and again. Where a part of it serves, it is waited for no longer, and isn't READY; where none does, that is
        soon `Unavailable`.
        """
        answered = moved = time.monotonic()
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
                moved = moved if status.stuck else answered
                if on_progress is not None:
                    on_progress(status)
                if status.is_settled(answered - moved):
                    self._settle(uid)
                    return status
            time.sleep(POLL_INTERVAL)

    def _settle(self, uid: str) -> None:
        """Wait until the gateway names the model's endpoints and `/ready` isn't 503, so that the next request finds the model."""
        deadline = time.monotonic() + SETTLE
        while time.monotonic() < deadline:
            with suppress(Unavailable, ChannelClosed):  # the model is READY, whatever happens to the gateway now
                served = self._ask(_Served, "GET", uid).endpoints
                if served != [] and self._server.status("/ready", self._patience()) != 503:
                    return
            time.sleep(POLL_INTERVAL / 4)

    def models(self) -> list[Model]:
        """All launches, in whatever state."""
        return self._call(ModelList, "GET", "/v1/models").data

    def model(self, uid: str) -> ModelStatus:
        """One launch with its replicas. Raises `ModelNotFound`."""
        return self._ask(ModelStatus, "GET", uid)

    def terminate(self, uid: str) -> None:
        """End a launch and wait until its replicas are gone. Raises `ModelNotFound`."""
        self._ask(msgspec.Raw, "DELETE", uid, timeout=self.timeout)

    def scale(self, uid: str, replica: int) -> None:
        """Have so many replicas of a launch; returns when it is accepted. Raises `ModelNotFound`, `NoPlacement`, `Conflict`."""
        self._ask(msgspec.Raw, "PUT", uid, "/replicas", ReplicaCount(replica=replica))

    def sleep(self, uid: str, level: int = 1) -> None:
        """Have a model give back its devices' memory until it is woken; returns when it is free. Running requests may end first.

        Level 1 keeps the weights in main memory, level 2 drops them. Raises `ModelNotFound`, `Conflict` unless it is READY,
        `UnsupportedField` where its engine can't, with what to do.
        """
        self._ask(SleepAnswer, "POST", uid, "/sleep", SleepOrder(level=level), self.timeout)

    def wake(self, uid: str) -> None:
        """Have a model that sleeps serve again; returns when it does. Raises `ModelNotFound`, `Conflict` unless it is READY."""
        self._ask(SleepAnswer, "POST", uid, "/wake", timeout=self.timeout)

    def log(self, uid: str, *, replica: int | None = None, rank: int = 0, start: int = -65536, previous: bool = False) -> LogPart:
        """A part of a replica's log from byte `start` on; below 0: so many before the end. With `previous`, of the log before.

        Raises `ModelNotFound`, `InvalidRequest`, and `ProtocolMismatch` where an older xi took no notice of `previous`.
        """
        query = {"rank": rank, "start": start, "replica": replica, "previous": "true" if previous else None}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        part = self._ask(LogPart, "GET", uid, f"/logs?{given}")
        if previous and not part.previous:
            raise ProtocolMismatch(f"{self.endpoint} or worker {part.worker} is an older xi, which shows no earlier logs; see `xi cluster`")
        return part

    def explain(self, spec: LaunchSpec) -> list[PlacementReport]:
        """Where each replica of a launch would go, and why; they end with the first that finds no place. Nothing is started."""
        return self._call(list[PlacementReport], "POST", "/v1/placements", _launch_body(spec))

    def _ask(self, wanted: type[T], method: str, uid: str, rest: str = "", body: Any = None, timeout: float | None = None) -> T:
        """Ask about one launch. Raises `ModelNotFound` for a name with a slash too: servers take that, however quoted, for the path's."""
        try:
            return self._server.call(wanted, method, f"/v1/models/{quote(uid, safe='')}{rest}", body, timeout or self._patience())
        except NotFound as error:
            if "/" not in uid or isinstance(error, ModelNotFound):
                raise
            raise ModelNotFound(f"no model '{uid}': a launch is called by its uid, which has no '/'; `xi list` shows them") from None

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
            return deltas(self._server.stream(Event, "/v1/chat/completions", body, self.timeout))
        return self._server.call(ChatCompletion, "POST", "/v1/chat/completions", body, self.timeout)

    @overload
    def complete(self, model: str, prompt: str | list[int], *, stream: Literal[False] = False, **fields: Any) -> Completion: ...

    @overload
    def complete(self, model: str, prompt: str | list[int], *, stream: Literal[True], **fields: Any) -> Deltas: ...

    def complete(self, model: str, prompt: str | list[int], *, stream: bool = False, **fields: Any) -> Completion | Deltas:
        """The completion of a text or of token ids, or with `stream` its deltas."""
        body = {"model": model, "prompt": prompt, "stream": stream, **fields}
        if stream:
            return deltas(self._server.stream(Event, "/v1/completions", body, self.timeout))
        return self._server.call(Completion, "POST", "/v1/completions", body, self.timeout)


def _spec(name: str, fields: dict[str, Any]) -> LaunchSpec:
    known = set(LaunchSpec.__struct_fields__)
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


class _Served(Struct):
    """What the gateway adds to a launch's status: the routes that it serves the model on. None: it doesn't say."""

    endpoints: list[str] | None = None
