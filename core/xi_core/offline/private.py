"""`PrivateModel`: one model that only this process can reach. A supervisor and a worker run in a thread of it; the replica is its child.

So a model resolves, is placed, starts, restarts and ends here as it does under `xi serve`; only the gateway is missing, and every socket
lies in a folder of this user's own. When this process dies, however it dies, the replica's life line and the keeper end what it ran.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from xi_core.api.control import EngineStatus, LaunchSpec, ModelStatus
from xi_core.cluster import logs
from xi_core.cluster import messages as m
from xi_core.cluster.host import find_devices, host_info
from xi_core.cluster.runtime import RuntimeFolder, sweep
from xi_core.cluster.supervisor import VOCABULARY, Supervisor
from xi_core.cluster.worker import Worker
from xi_core.config import Settings
from xi_core.engine.info import HostInfo
from xi_core.errors import ChannelClosed, LaunchFailed, Overloaded, ReplicaLost, Unavailable, XiError
from xi_core.models.catalog import default_uid
from xi_core.offline.line import Line
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls, Link, dial
from xi_core.transport.schemes import by_scheme

log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds for the replica to end gently; nothing that somebody waits for runs then."""
MAX_TRIES = 2
"""As in the gateway: a request that two replicas die of is given up."""
MAX_REFUSALS = 20
"""So often a request is sent again that the replica can't take now."""
REDIAL = 3.0
"""Seconds after which a replica is dialled again whose line was lost, and of whose end its worker hasn't told meanwhile: it lives on."""
CLOSE_TIMEOUT = 15.0

T = TypeVar("T")
_numbers = itertools.count(1)


class PrivateModel:
    """A model and its thread. Any thread may call any method, but none after `close` but `close`."""

    def __init__(self, config: Settings) -> None:
        """Start the thread, and in it supervisor and worker. Raises `ConfigError` or `PluginError`, as `xi serve` does."""
        self.uid = ""
        self.hub = PluginHub.load(config.plugins)
        self._config = msgspec.structs.replace(config, grace=min(GRACE, config.grace))
        self._pid = os.getpid()
        self._route: m.ModelRoute | None = None
        self._lines: list[Line] = []
        self._replicas = 1
        self._link: Link | None = None
        sweep()
        self._runtime = RuntimeFolder()
        self._loop = asyncio.new_event_loop()
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon: a thread that isn't would keep the interpreter from ending before anybody could close this.
        self._thread = threading.Thread(target=self._run, name="xi-offline", daemon=True)
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self.close()
            raise

    # ---- what callers do ------------------------------------------------------------------------

    def launch(self, spec: LaunchSpec) -> ModelStatus:
        """Launch the one model and wait until it is ready. Raises `LaunchError` and its kinds."""
        self.uid = f"{default_uid(spec)[:100]}-{os.getpid()}-{next(_numbers)}"
        self._replicas = spec.replica
        return self._wait(self._launch(msgspec.structs.replace(spec, model_uid=self.uid)))

    def engines(self, model: str) -> list[EngineStatus]:
        """The engines, and whether they take this model. Raises as `launch`."""
        return self._wait(self._engines(model))

    def has_devices(self) -> bool:
        """Whether this machine has accelerators that a launch could get."""
        return bool(find_devices(self.hub.devices, os.environ))

    def host(self) -> HostInfo:
        """The facts of this machine."""
        return host_info(find_devices(self.hub.devices, os.environ))

    @property
    def context_length(self) -> int:
        """Tokens of the ready model's context."""
        return (self._route.context_length if self._route else None) or 0

    def ask(self, path: str, body: bytes) -> bytes:
        """The answer to one request. Raises the replica's error by its class."""
        return self._wait(self._ask(path, body))

    def ask_all(self, path: str, bodies: Sequence[bytes], on_done: Callable[[int], None]) -> list[bytes]:
        """The answers to many requests, in order, so many at once that the replica is always busy.

        `on_done` is called with the place of each that is answered, in the thread of this object. The first error ends all: it is
        raised, with the place of its request in the words. So does an interrupt of the caller.
        """
        return self._wait(self._ask_all(path, bodies, on_done))

    def close(self) -> None:
        """End the replica and all that belongs to it. Idempotent. In a fork of the process that made this it does nothing."""
        if os.getpid() != self._pid:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, done in the thread. Whoever interrupts the wait ends the work."""
        forked = os.getpid() != self._pid
        if forked or self._stop.is_set() or not self._thread.is_alive():
            work.close()
            why = f"belongs to process {self._pid}, of which this one is a fork; make one here" if forked else "is closed; make another"
            raise ChannelClosed(f"this LLM {why}")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ChannelClosed("this LLM was closed while it worked") from None
        except BaseException:
            future.cancel()
            raise

    # ---- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live())
        except Exception as error:
            if self._started.done():
                log.exception("offline model %s", self.uid)
            else:
                self._started.set_exception(error)
        finally:
            self._runtime.remove()
            self._remove_logs()

    def _remove_logs(self) -> None:
        """The uid is of this process only, so nobody would ever look for its logs; what they told of a failure stands in the error."""
        home = self._config.home_dir
        for path in logs.log_file(home, self.uid).parent.glob(f"{self.uid}-*.log*") if self.uid else ():
            path.unlink(missing_ok=True)

    async def _live(self) -> None:
        endpoint = f"ipc://{self._runtime.path}/supervisor.sock"
        supervisor = Supervisor(self.hub, self._config, endpoint, settle=0.0)
        try:
            worker = Worker(self.hub, self._config, name="offline", runtime=self._runtime.path, supervisor=endpoint)
            serving = asyncio.create_task(worker.serve(self._stop))
            calls: Calls = {m.TableUpdate: self._update}
            self._link = dial(by_scheme(self.hub.transports, endpoint), endpoint, VOCABULARY, calls, self._stop.set)
            await self._call(m.Subscribe(gateway="offline", pid=os.getpid()))
            self._started.set_result(None)
            await serving
        finally:
            await supervisor.close()  # first: to a link that is closed it would complain that its last table isn't taken
            await self._hang_up()

    async def _hang_up(self) -> None:
        for line in self._lines:
            await line.close()
        if self._link is not None:
            await self._link.close()

    async def _call(self, command: msgspec.Struct, timeout: float | None = 30.0) -> Any:
        if self._link is None:
            raise ChannelClosed("this LLM has not started")
        return await self._link.call(command, timeout)

    async def _update(self, update: m.TableUpdate) -> None:
        self._route = next((model for model in update.models if model.uid == self.uid), self._route)
        routes = self._route.replicas if self._route is not None else []
        gone = [line for line in self._lines if line.route not in routes]
        self._lines = [line for line in self._lines if line.route in routes]
        for line in gone:
            await line.close()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _launch(self, spec: LaunchSpec) -> ModelStatus:
        await self._call(m.Launch(spec), timeout=None)
        await self._ready()
        return await self._status()

    async def _engines(self, model: str) -> list[EngineStatus]:
        found: m.Engines = await self._call(m.ListEngines(LaunchSpec(model_name=model)))
        return found.engines

    async def _status(self) -> ModelStatus:
        status: ModelStatus = await self._call(m.GetModel(self.uid))
        return status

    async def _ready(self) -> Line:
        """The line to the replica with the least to do, once there is one. Raises `LaunchFailed` when there will be none."""
        while True:
            route = self._route
            if route is not None and route.state == "FAILED":
                (await self._status()).is_ready()
                raise LaunchFailed(f"the model has failed: {route.detail}")
            now = time.monotonic()
            self._lines = [line for line in self._lines if line.lost_at is None or now - line.lost_at < REDIAL]
            dialled = [line.route for line in self._lines]
            for replica in route.replicas if route is not None else []:
                if replica not in dialled:
                    self._lines.append(Line(by_scheme(self.hub.transports, replica.endpoint), replica))
            alive = [line for line in self._lines if not line.lost]
            if alive:
                return min(alive, key=lambda line: line.open)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REDIAL if self._lines else None):
                    await self._changed.wait()

    # ---- asking ---------------------------------------------------------------------------------

    async def _ask(self, path: str, body: bytes) -> bytes:
        losses = refusals = 0
        while True:
            line = await self._ready()
            try:
                return await line.ask(path, body)
            except ReplicaLost:
                losses += 1
                if losses == MAX_TRIES:
                    raise
            except (Unavailable, Overloaded) as error:  # this process stood still, the replica is stopping, or others ask as well
                refusals += isinstance(error, Unavailable)
                if refusals == MAX_REFUSALS:
                    raise
                await asyncio.sleep(error.retry_after or 1.0)

    async def _ask_all(self, path: str, bodies: Sequence[bytes], on_done: Callable[[int], None]) -> list[bytes]:
        answers = [b""] * len(bodies)
        places = iter(range(len(bodies)))  # shared: each place is taken once

        async def work() -> None:
            for place in places:
                try:
                    answers[place] = await self._ask(path, bodies[place])
                except XiError as error:
                    raise _placed(error, place) if len(bodies) > 1 else error from None
                on_done(place)

        slots = (await self._ready()).route.slots * self._replicas
        most = slots + min(slots, self._config.queue_size // 2)  # which leaves room for what other threads ask
        workers = [asyncio.create_task(work()) for _ in range(min(most, len(bodies)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for one in workers:
                one.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return answers


def _placed(error: XiError, place: int) -> XiError:
    """The same error, with the request's place before its words."""
    body = error.body()
    body.message = f"prompt {place}: {body.message}"
    return XiError.from_body(body)
