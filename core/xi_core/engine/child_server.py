"""`ChildServerEngine`: an `ApiEngine` over an OpenAI server that runs as a child process. vLLM, SGLang and third parties build on it.

    class MyEngine(ChildServerEngine):
        name = "my-server"

        def command(self, plan, address):
            argv = [sys.executable, "-m", "my_server", "--model", plan.artifact.path, "--uds", str(address.socket)]
            return ServerCommand(argv=argv, env={"MY_SERVER_API_KEY": address.key})

        def loaded(self, plan, card):
            return LoadedModel(context_length=card["max_model_len"], slots=plan.limits.batch_size, manifest=MANIFEST)

All traffic runs on one loop in a thread of the engine's own. What the server sends goes to the sink as it came, unless `event` rewrites it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

import msgspec
from msgspec import Struct, field

from xi_core.engine.base import ApiEngine, ApiRequest, ApiSink, EngineStats, LoadedModel, Progress
from xi_core.engine.child_address import Address
from xi_core.engine.child_http import BadAnswer, Reply, ask, encode
from xi_core.engine.child_process import Child
from xi_core.engine.child_refusal import Refusal, refusal_of
from xi_core.engine.child_translate import to_server, to_xi
from xi_core.errors import EngineError, Unavailable, XiError
from xi_core.wire.plan import LaunchPlan

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL = 0.1
"""Seconds between questions whether the server is ready."""
ANSWER = 5.0
"""Longest wait for the answer to such a question."""
DEATH = 1.0
"""Seconds in which a server that has closed its connections is seen to be dead."""
LAUNCH_SHARE = 0.95
"""Part of the launch's time after which the engine gives up itself, and can tell the server's last words."""
LAST_LINES = 20
_ERROR = b'{"error"'
_BROKEN = (b'"finish_reason":"abort"', b'"finish_reason":"error"')


class ServerCommand(Struct, kw_only=True):
    """What to run. `env` is set in any case, `defaults` where neither the worker nor the launch (`--env`) has set the variable."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)


class _Call:
    """One request on its way."""

    __slots__ = ("lost", "refusal", "request", "sink", "task")

    def __init__(self, request: ApiRequest, sink: ApiSink) -> None:
        self.request = request
        self.sink = sink
        self.task: asyncio.Task[None] | None = None
        self.refusal: Refusal | None = None
        self.lost = ""
        """Why the server can't finish it."""


class ChildServerEngine(ApiEngine):
    """Runs one server. A subclass says `name`, `command` and `loaded`; the rest has defaults that a true OpenAI server satisfies."""

    name: ClassVar[str]
    """For messages."""
    unix_socket: ClassVar[bool] = True
    """Whether the server can listen on a Unix socket; a port of loopback where not."""
    health_path: ClassVar[str] = "/health"
    """Answers 200 once the server is ready."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._address: Address | None = None
        self._child: Child | None = None
        self._watch: asyncio.Task[None] | None = None
        self._calls: dict[int, _Call] = {}
        self._uid = ""
        self._dead = "no model is loaded, or it was closed"
        self._steps = 0

    # ---- what a subclass says -------------------------------------------------------------------

    @abstractmethod
    def command(self, plan: LaunchPlan, address: Address) -> ServerCommand:
        """The server's command line and environment: to serve `plan.artifact` under the name `plan.uid` at `address`, with its key.

        The key goes by environment or by a file of `address.folder`, never by the command line. Raises `UnknownOption`.
        """

    @abstractmethod
    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        """What was loaded, once the server is ready; `card` is the server's own entry for it in `GET /v1/models`."""

    def body(self, request: ApiRequest) -> dict[str, Any]:
        """The request's body in the server's words. Raises `InvalidRequest`. Called on the engine's loop, as the next three."""
        return to_server(request)

    def second_body(self, request: ApiRequest, data: bytes) -> dict[str, Any] | None:
        """A body to try once more with, where the server has refused the first with the error `data`; None where its word is final."""
        return None

    def event(self, request: ApiRequest, data: bytes) -> bytes:
        """One event of the answer as the serving layer reads it. Called per token: look before you decode."""
        return to_xi(data)

    def refusal(self, request: ApiRequest, status: int, data: bytes) -> Refusal:
        """The server's error in xi's words. `status` is that of the answer; an error in a stream brings its own."""
        return refusal_of(self.name, request, status, data)

    def stage(self, line: str) -> tuple[str, float | None] | None:
        """The stage of loading that a line of the server's output tells of, and its share that is done."""
        return None

    def failed_start(self, how: str, lines: list[str]) -> XiError:
        """Why the server ended before it was ready: `how` in words, `lines` its last output."""
        return EngineError(f"the server of engine {self.name} {how} while it started; {_last(lines)}")

    # ---- life -----------------------------------------------------------------------------------

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        self._uid = plan.uid
        self._address = Address.make(plan.endpoint, unix_socket=self.unix_socket)
        try:
            command = self.command(plan, self._address)
            self._begin_loop()
            progress("starting the server", None)
            return self._await(self._start(plan, command, progress))
        except BaseException:
            self.close(ANSWER)
            raise

    def check(self) -> None:
        if self._dead:
            raise EngineError(self._dead)

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._calls), steps=self._steps, tokens=self._steps)

    def close(self, grace: float) -> None:
        loop, self._loop = self._loop, None
        self._dead = self._dead or "no model is loaded, or it was closed"
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._stop(grace), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            if self._thread is not None:
                self._thread.join()
            loop.close()
        if self._address is not None:
            self._address.remove()

    # ---- requests -------------------------------------------------------------------------------

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        loop = self._loop
        if loop is None:
            sink.failed(request.id, Unavailable.status, "the engine is closed", code=Unavailable.code)
            return
        loop.call_soon_threadsafe(self._begin, request, sink)

    def abort(self, id: int) -> None:
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._cancel, id)

    def _begin(self, request: ApiRequest, sink: ApiSink) -> None:
        call = self._calls[request.id] = _Call(request, sink)
        call.task = asyncio.ensure_future(self._serve(call))
        call.task.add_done_callback(lambda task: self._ended(call, task))

    def _cancel(self, id: int) -> None:
        call = self._calls.get(id)
        if call is not None and call.task is not None:
            call.task.cancel()

    async def _serve(self, call: _Call) -> None:
        """One request to its end. A task that is cancelled before it began runs nothing of this: `_ended` tells the sink."""
        request = call.request
        try:
            reply = await self._exchange(call)
            if call.refusal is None and reply.status != 200:
                call.refusal = self.refusal(request, reply.status, reply.body)
        except XiError as error:
            call.refusal = Refusal(status=error.status, message=error.message, param=error.param, code=error.code)
        except (OSError, BadAnswer) as error:
            call.refusal = Refusal(status=500, message=await self._why(error))
        except Exception:  # a fault of a subclass must not leave the request open
            log.exception("request %d failed in engine %s", request.id, self.name)
            call.refusal = Refusal(status=500, message=f"engine {self.name} failed on this request; the replica's log has the details")

    def _ended(self, call: _Call, task: asyncio.Task[None]) -> None:
        id, why = call.request.id, call.refusal
        if task.cancelled():  # aborted, or the server is dead
            why = Refusal(status=500, message=call.lost) if call.lost else None
        del self._calls[id]
        if why is None:
            call.sink.done(id)
        else:
            call.sink.failed(id, why.status, why.message, why.param, why.code)

    async def _exchange(self, call: _Call) -> Reply:
        if self._dead:
            raise EngineError(self._dead)
        request = call.request
        reply = await self._post(call, self.body(request))
        if 400 <= reply.status < 500 and (second := self.second_body(request, reply.body)) is not None:
            reply = await self._post(call, second)
        return reply

    async def _post(self, call: _Call, body: dict[str, Any]) -> Reply:
        full = {**body, "model": self._uid, "stream": True, "stream_options": {"include_usage": True}}
        return await self._ask("POST", call.request.route, msgspec.json.encode(full), call)

    def _event(self, call: _Call, data: bytes) -> None:
        self._steps += 1
        if call.refusal is not None:
            return
        if data.startswith(_ERROR):
            call.refusal = self.refusal(call.request, 500, data)
        elif any(sign in data for sign in _BROKEN):
            call.refusal = Refusal(status=500, message=f"engine {self.name} gave this answer up; the replica's log may say why")
        else:
            call.sink.event(call.request.id, self.event(call.request, data))

    async def _why(self, error: Exception) -> str:
        """The reason of a broken connection, which is mostly that the server has died a moment ago."""
        if self._watch is not None:
            await asyncio.wait([self._watch], timeout=DEATH)
        return self._dead or f"the server of engine {self.name} broke off: {error}"

    # ---- the server -----------------------------------------------------------------------------

    def _begin_loop(self) -> None:
        loop = self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=loop.run_forever, name=f"{self.name}-client", daemon=True)
        self._thread.start()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self, plan: LaunchPlan, command: ServerCommand, progress: Progress) -> LoadedModel:
        assert self._address is not None
        ready = False

        def on_line(line: str) -> None:
            if not ready and (found := self.stage(line)) is not None:
                progress(*found)

        env = {**command.defaults, **os.environ, **command.env}
        try:
            child = self._child = Child(command.argv, env, self._address.key, on_line)
        except OSError as error:
            raise EngineError(f"the server of engine {self.name} can't be run: {error}") from None
        await self._until_ready(child, plan.limits.launch_timeout * LAUNCH_SHARE)
        model = self.loaded(plan, await self._card(plan.uid))
        ready, self._dead = True, ""
        self._watch = asyncio.ensure_future(self._until_dead(child))
        return model

    async def _until_ready(self, child: Child, seconds: float) -> None:
        """Raises `EngineError`, or what `failed_start` makes of it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if child.exited.is_set():
                await child.sweep()
                raise self.failed_start(child.how(), child.lines)
            with contextlib.suppress(OSError, BadAnswer, TimeoutError):
                if (await asyncio.wait_for(self._ask("GET", self.health_path), ANSWER)).status == 200:
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.exited.wait(), POLL)
        raise EngineError(f"the server of engine {self.name} was not ready after {seconds:.0f} s; {_last(child.lines)}")

    async def _card(self, uid: str) -> dict[str, Any]:
        try:
            reply = await asyncio.wait_for(self._ask("GET", "/v1/models"), ANSWER)
            cards: list[dict[str, Any]] = msgspec.json.decode(reply.body)["data"]
            return next(card for card in cards if card["id"] == uid)
        except (OSError, BadAnswer, TimeoutError, msgspec.DecodeError, LookupError, TypeError, StopIteration) as error:
            raise EngineError(f"the server of engine {self.name} does not list the model {uid}: {error!r}") from None

    async def _ask(self, method: str, path: str, body: bytes = b"", call: _Call | None = None) -> Reply:
        assert self._address is not None
        request = encode(method, path, self._address.key, body)
        return await ask(self._address.place, request, lambda data: self._event(call, data) if call else None)

    async def _until_dead(self, child: Child) -> None:
        """Wait for the server's death, which fails all that runs and, by `check`, ends the replica."""
        await child.exited.wait()
        self._dead = f"the server of engine {self.name} {child.how()}; {_last(child.lines)}"
        log.error("the server of engine %s %s", self.name, child.how())
        self._cancel_all(self._dead)
        await child.sweep()

    def _cancel_all(self, lost: str) -> None:
        for call in self._calls.values():
            call.lost = lost
            if call.task is not None:
                call.task.cancel()

    async def _stop(self, grace: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._cancel_all("the engine is closed")
        if self._child is not None:
            await self._child.stop(grace * 0.8)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=ANSWER)
        await asyncio.get_running_loop().shutdown_default_executor()


def _last(lines: list[str]) -> str:
    found = [line for line in lines if line.strip()][-LAST_LINES:]
    return "its last lines:\n" + "\n".join(found) if found else "it has written nothing"
