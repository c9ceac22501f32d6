"""`ChildServerEngine`: an `ApiEngine` over an OpenAI server that runs as a child process. vLLM, SGLang and third parties build on it.

    class MyEngine(ChildServerEngine):
        name = "my-server"

        def command(self, plan, address):
            argv = [sys.executable, "-m", "my_server", "--model", plan.artifact.path, "--uds", str(address.socket)]
            return ServerCommand(argv=argv, env={"MY_SERVER_API_KEY": address.key})

        def loaded(self, plan, card):
            return LoadedModel(context_length=card["max_model_len"], slots=plan.limits.batch_size, manifest=MANIFEST)

What else a subclass may say is in `child_words.py`. All traffic runs on one loop in a thread of the engine's own. What the server sends
goes to the sink as it came, unless `event` rewrites it.

A model that is shared over several workers has a server on each. That of rank 0 answers, and is ready when all are; the others (followers)
do their part of its work and get no requests, so that all there is to them is whether they live.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from xi_core.engine.base import ApiEngine, ApiRequest, ApiSink, EngineStats, LoadedModel, Progress
from xi_core.engine.child_address import Address
from xi_core.engine.child_calls import Calls
from xi_core.engine.child_http import BadAnswer
from xi_core.engine.child_metrics import counters_of
from xi_core.engine.child_process import Child
from xi_core.engine.child_sleep import ask_all
from xi_core.engine.child_words import ServerCall, ServerCommand, ServerWords, last_lines
from xi_core.errors import EngineError, Unavailable
from xi_core.models.checkpoint import recommended_sampling
from xi_core.wire.frames import EngineCounters
from xi_core.wire.manifest import Manifest
from xi_core.wire.plan import LaunchPlan

__all__ = ["ChildServerEngine", "ServerCall", "ServerCommand"]

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL = 0.1
"""Seconds between questions whether the server is ready."""
ANSWER = 5.0
"""Longest wait for the answer to such a question."""
FOLLOWING = 60.0
"""Seconds after which a follower that has said nothing known counts as started: whether all goes well is rank 0's to tell."""
LAUNCH_SHARE = 0.95
"""Part of the launch's time after which the engine gives up itself, and can tell the server's last words."""
METRICS_SHARE = 0.25
"""Part of the hang timeout within which the metrics are looked at again, for they may be all that tells of progress."""
_CLOSED = "no model is loaded, or it was closed"
_FOLLOWER = LoadedModel(context_length=0, slots=0, manifest=Manifest(endpoints={}))
"""What a follower tells of its model: nothing, for nobody asks it for anything."""


class ChildServerEngine(ServerWords, ApiEngine):
    """Runs one server. A subclass says `name`, `command` and `loaded`, and what else of `ServerWords` is not as its defaults have it."""

    metrics_interval: ClassVar[float] = 5.0
    """Seconds between looks at the server's metrics, which cost it some milliseconds."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._address: Address | None = None
        self._child: Child | None = None
        self._calls: Calls | None = None
        self._counters: EngineCounters | None = None
        self._changes = 0
        """Looks at the metrics that found them changed…"""
        self._lines = 0
        """…and lines of the output that told of work: what moves while a long prompt is read, of which no event comes."""
        self._tasks: list[asyncio.Task[None]] = []
        self._patience = 0.0
        """Seconds that the server may take to fall asleep or to wake: it may load the model again."""
        self._level = 0
        """At which it sleeps; 0: it is awake."""

    # ---- life -----------------------------------------------------------------------------------

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        address = self._address = Address.make(plan.endpoint, unix_socket=self.unix_socket)
        self._patience = plan.limits.launch_timeout
        try:
            command = self.command(plan, address)
            self._begin_loop()
            progress("starting the server", None)
            return self._await(self._start(plan, command, address, progress))
        except BaseException:
            self.close(ANSWER)
            raise

    def check(self) -> None:
        if dead := self._calls.dead if self._calls is not None else _CLOSED:
            raise EngineError(dead)

    def stats(self) -> EngineStats:
        calls = self._calls
        if calls is None:
            return EngineStats()
        steps = calls.steps + self._changes + self._lines
        return EngineStats(running=calls.running, steps=steps, tokens=calls.steps, own=self._counters)

    def sleep(self, level: int) -> None:
        self._ask_all(self.sleep_calls(level))
        self._level = level

    def wake(self) -> None:
        self._ask_all(self.wake_calls(self._level))
        self._level = 0

    def close(self, grace: float) -> None:
        loop, self._loop = self._loop, None
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
        loop, calls = self._loop, self._calls
        if loop is None or calls is None:
            sink.failed(request.id, Unavailable.status, "the engine is closed", code=Unavailable.code)
            return
        loop.call_soon_threadsafe(calls.begin, request, sink)

    def abort(self, id: int) -> None:
        loop, calls = self._loop, self._calls
        if loop is not None and calls is not None:
            loop.call_soon_threadsafe(calls.cancel, id)

    # ---- the server -----------------------------------------------------------------------------

    def _begin_loop(self) -> None:
        loop = self._loop = _new_loop()
        self._thread = threading.Thread(target=loop.run_forever, name=f"{self.name}-client", daemon=True)
        self._thread.start()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _ask_all(self, calls: list[ServerCall]) -> None:
        address = self._address
        if self._loop is None or address is None:
            raise EngineError(_CLOSED)
        self._await(ask_all(self.name, address, calls, self._patience))

    async def _start(self, plan: LaunchPlan, command: ServerCommand, address: Address, progress: Progress) -> LoadedModel:
        ready, joined = False, threading.Event()

        def on_line(line: str) -> None:
            if not ready and (found := self.stage(line)) is not None:
                progress(*found)
            if self.joined(line):
                joined.set()
            if self.works(line):
                self._lines += 1

        env = {**command.defaults, **os.environ, **command.env}
        try:
            child = self._child = Child(command.argv, env, address.key, on_line)
        except OSError as error:
            raise EngineError(f"the server of engine {self.name} can't be run: {error}") from None
        follows = plan.rendezvous is not None and plan.rendezvous.rank > 0
        await self._until_ready(child, address, plan.limits.launch_timeout * LAUNCH_SHARE, joined if follows else None)
        model = _FOLLOWER if follows else self.loaded(plan, await self._card(address, plan.uid))
        if not follows and not model.sampling:
            model.sampling = recommended_sampling(Path(plan.artifact.path))
        ready, calls = True, Calls(self, plan.uid, address)
        self._calls = calls
        self._tasks = [asyncio.ensure_future(self._until_dead(child, calls))]
        if self.metrics and not follows:
            interval = min(self.metrics_interval, plan.limits.hang_timeout * METRICS_SHARE)
            self._tasks.append(asyncio.ensure_future(self._follow_metrics(address, interval)))
        return model

    async def _until_ready(self, child: Child, address: Address, seconds: float, joined: threading.Event | None) -> None:
        """Until it answers; a follower: until it has `joined`, too. Raises `EngineError`, or what `failed_start` makes of it."""
        began = time.monotonic()
        while (waited := time.monotonic() - began) < seconds:
            if child.exited.is_set():
                await child.sweep()
                raise self.failed_start(child.how(), child.lines)
            if joined is not None and (joined.is_set() or waited > FOLLOWING):
                return
            with contextlib.suppress(OSError, BadAnswer, TimeoutError):
                if (await asyncio.wait_for(address.ask("GET", self.health_path), ANSWER)).status == 200:
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.exited.wait(), POLL)
        raise EngineError(f"the server of engine {self.name} was not ready after {seconds:.0f} s; {last_lines(child.lines)}")

    async def _card(self, address: Address, uid: str) -> dict[str, Any]:
        """The model's own among the cards; LoRA modules have theirs."""
        try:
            reply = await asyncio.wait_for(address.ask("GET", "/v1/models"), ANSWER)
            cards: list[dict[str, Any]] = msgspec.json.decode(reply.body)["data"]
            return next(card for card in cards if card["id"] == uid)
        except (OSError, BadAnswer, TimeoutError, msgspec.DecodeError, LookupError, TypeError, StopIteration) as error:
            raise EngineError(f"the server of engine {self.name} does not list the model {uid}: {error!r}") from None

    async def _until_dead(self, child: Child, calls: Calls) -> None:
        """Wait for the server's death, which fails all that runs and, by `check`, ends the replica."""
        await child.exited.wait()
        log.error("the server of engine %s %s", self.name, child.how())
        calls.end(f"the server of engine {self.name} {child.how()}; {last_lines(child.lines)}")
        await child.sweep()

    async def _follow_metrics(self, address: Address, interval: float) -> None:
        while True:
            with contextlib.suppress(OSError, BadAnswer, TimeoutError, UnicodeDecodeError):
                reply = await asyncio.wait_for(address.ask("GET", self.metrics_path), ANSWER)
                if reply.status == 200:
                    found = counters_of(reply.body.decode(), self.metrics)
                    if found != self._counters:
                        self._counters = found
                        self._changes += 1
            await asyncio.sleep(interval)

    async def _stop(self, grace: float) -> None:
        for task in self._tasks:
            task.cancel()
        if self._calls is not None:
            self._calls.end("the engine is closed")
        if self._child is not None:
            await self._child.stop(grace * 0.8)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=ANSWER)
        await asyncio.get_running_loop().shutdown_default_executor()


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one: a read costs it a quarter of what it costs asyncio's own."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.SelectorEventLoop()
    return new_event_loop()
