"""One replica on its worker, from the artifact's download to the end of its process. The worker holds one `RunningReplica` for each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from xi_core.api.control import LaunchState, ReplicaStatus
from xi_core.api.transfer import ModelTransfer
from xi_core.cluster import keeper, logs
from xi_core.cluster.guard import Guard
from xi_core.cluster.messages import ReplicaRecord, StartReplica
from xi_core.cluster.orders import Orders
from xi_core.cluster.process import REPLICA_COMMAND, ReplicaProcess, environment, seen_by_engine, tag
from xi_core.cluster.replicas import rank_of
from xi_core.cluster.threads import in_thread, surely
from xi_core.cluster.vitals import Vitals
from xi_core.errors import ArtifactError, Conflict, LaunchCancelled, LaunchError, LaunchFailed, XiError
from xi_core.models.adapter import read_adapter
from xi_core.models.cache import ModelCache
from xi_core.models.family import SourceRef
from xi_core.models.inspect import local_path
from xi_core.models.source import Progress
from xi_core.process_end import how_ended
from xi_core.wire import report as wire
from xi_core.wire.plan import LaunchPlan, LoraModule

log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds between looks at a process that reports nothing."""
KILL_TIMEOUT = 5.0
FETCH_TIMEOUT = 1.0
"""Seconds in which what fetches the artifact must end when the replica is stopped meanwhile; one that waits for a network takes longer."""
EXIT_TIMEOUT = 3.0
"""Seconds for a replica that has said that it can't go on to exit."""
OTHERS = 3.0
"""Seconds that a failed rank waits to be ended because of another one, before its own failure is told: more than two leases, so that a
worker that has died is known by then."""
PROGRESS_INTERVAL = 0.1
"""Progress is passed on at most this often, in seconds."""

Fetch = Callable[[SourceRef, Progress], Path]
Build = Callable[[StartReplica, Progress], Path | None]
"""Makes the interpreter of the replica's own environment; None: the worker's own will do."""
T = TypeVar("T")


class RunningReplica:
    """A replica's life: fetch, start, watch, end. `on_change` is called at each change of its record."""

    def __init__(
        self,
        start: StartReplica,
        *,
        worker: str,
        home: Path,
        fetch: Fetch,
        build: Build = lambda start, progress: None,
        guard: Guard,
        on_change: Callable[[RunningReplica], None],
        command: Sequence[str] = REPLICA_COMMAND,
        shared: bool = False,
        secret: str = "",
    ) -> None:
        """`shared`: it is one rank of several, which waits for the others (`begin`) once it is `prepared`.

        `secret`: its own secret key, where its plan has the public one; only its process gets to see it.
        """
        plan = start.plan
        status = ReplicaStatus(
            replica_id=plan.replica_id,
            state="PREPARING",
            stage="preparing",
            worker=worker,
            devices=plan.devices,
            restarts=start.restarts,
            moves=start.moves,
        )
        self.record = ReplicaRecord(plan=plan, spec=start.spec, status=status, created=start.created, model=start.model)
        self.error: str | None = None
        """Why it ended, where nobody asked it to."""
        self.code: str | None = None
        """The error's code, where the replica or its artifact named one."""
        self.final = False
        self._home, self._fetch, self._guard, self._on_change, self._command = home, fetch, guard, on_change, command
        self._start, self._build = start, build
        self.artifact: Path | None = None
        """What was fetched for it, from then on."""
        self._serving = contextlib.ExitStack()
        """Keeps it in the cache, which other workers may have too."""
        self.python: Path | None = None
        """The interpreter of its own environment, once that is built."""
        self._secret = secret
        self._process: ReplicaProcess | None = None
        self._orders = Orders()
        self._told_at, self._told_kind = 0.0, ""
        self._failure: XiError | None = None
        self._grace: float | None = None
        self._stopping = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when nothing of it is left."""
        self._loop = asyncio.get_running_loop()
        self.prepared: asyncio.Future[None] | None = self._loop.create_future() if shared else None
        """Of one rank of several: settled when its artifact is there, or with the reason why not."""
        self._begun = asyncio.Event()

    @property
    def plan(self) -> LaunchPlan:
        """Its plan, with the artifact's place once it is known."""
        return self.record.plan

    @property
    def waits(self) -> bool:
        """Whether it is one rank of several, and not yet begun."""
        return self.prepared is not None and not self._begun.is_set()

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""
        return self._stopping.is_set()

    @property
    def _log_file(self) -> Path:
        return logs.log_file(self._home, self.plan.replica_id, rank_of(self.record))

    def begin(self, plan: LaunchPlan) -> None:
        """All ranks are prepared, and `plan` tells where they are: start."""
        self.record.plan = plan
        self._begun.set()

    def stop(self, grace: float) -> None:
        """End it: at once, or after `grace` seconds for the requests that run. May be called again to shorten it."""
        self._grace = grace if self._grace is None else min(grace, self._grace)
        self._stopping.set()

    async def sleep(self, level: int) -> None:
        """Have it sleep at this level, 0: wake. Raises what it answers, `Conflict` unless it is READY, `ReplicaLost` if it ends."""
        process = self._process
        if process is None or self.record.status.state != "READY":
            raise Conflict(f"{self.plan.replica_id} is {self.record.status.state}; it sleeps and wakes only while it is READY")
        await self._orders.give(process, level)

    async def run(self) -> None:
        """Its whole life; never raises. Afterwards `error` tells why it ended, unless it was stopped, and nothing of it is left."""
        self._tell("PREPARING", "preparing")
        fetching = in_thread(self._fetched)
        fetching.add_done_callback(lambda done: done.cancelled() or done.exception())  # where it was stopped, nobody asks any more
        try:
            artifact = await self._until_stopped(asyncio.shield(fetching))
            if artifact is not None and await self._all_prepared():
                await self._spawn(artifact)
                await self._watch()
        except XiError as error:
            self.error, self.code, self.final = error.message, error.code, True
        except Exception as error:
            log.exception("replica %s", self.plan.replica_id)
            self.error = f"{type(error).__name__}: {error}"
        finally:
            # The thread ends what it runs, such as uv with its processes, once it looks: it must, for this worker may be about to end.
            await asyncio.wait({fetching}, timeout=FETCH_TIMEOUT)
            await self._clean_up()
            self._serving.close()
        if self._failure is not None and self.prepared is not None and not self.final:
            await self._others_told()
        if self.prepared is not None and not self.prepared.done():
            self.prepared.set_exception(LaunchFailed(self.error) if self.error else LaunchCancelled(f"{self.plan.replica_id} was stopped"))
            self.prepared.exception()  # whoever waited for it may be gone
        if self._grace is not None:
            self.error, self.code, self.final = None, None, False
        self.ended.set()

    # ---- fetching and starting ------------------------------------------------------------------

    def _fetched(self) -> Path:
        """In a thread: the artifact on disk. The LoRA modules are looked at first: they are there already, or never."""
        for module in self.plan.lora_modules:
            read_adapter(module)
        self.python = self._build(self._start, self._progress)
        try:
            self.artifact = self._fetch(self.record.model.source, self._progress)
            self._serving.enter_context(ModelCache(self._home).serving(self.artifact))
            if self.ended.is_set():  # it was not waited for
                self._serving.close()
            return self.artifact
        except OSError as error:
            raise ArtifactError(f"{self.record.model.source.id}: {error.strerror or error}") from error

    async def _all_prepared(self) -> bool:
        """Of one rank of several: tell that it is prepared and wait for the others. False when it is stopped meanwhile.

        How long the others may take is for the supervisor to say, which stops this one then, or when it is away.
        """
        if self.prepared is None:
            return True
        self.prepared.set_result(None)
        self._tell("PREPARING", "waiting for the other ranks")
        return await self._until_stopped(asyncio.ensure_future(self._begun.wait())) is True

    def _progress(self, stage: str, share: float | None, download: ModelTransfer | None = None, /) -> None:
        """From the fetching thread. Raises `LaunchCancelled`, through the source, when nobody wants the artifact any more."""
        if self._stopping.is_set():
            raise LaunchCancelled(f"{self.plan.replica_id} was stopped while its artifact was fetched")
        now, kind = time.monotonic(), stage.partition(":")[0]
        if share is None or share >= 1.0 or kind != self._told_kind or now - self._told_at >= PROGRESS_INTERVAL:
            self._told_at, self._told_kind = now, kind
            self._loop.call_soon_threadsafe(self._tell, "PREPARING", stage, share, download)

    async def _spawn(self, artifact: Path) -> None:
        plan = self.record.plan = msgspec.structs.replace(
            self.plan,
            artifact=msgspec.structs.replace(self.plan.artifact, path=str(artifact)),
            lora_modules=[LoraModule(name=module.name, path=str(local_path(module.path))) for module in self.plan.lora_modules],
        )
        self._tell("STARTING", "starting the process")
        try:
            log_to = await in_thread(lambda: logs.open_log(self._home, plan.replica_id, rank_of(self.record)))
        except BlockingIOError:
            raise  # there was no thread for it, now
        except OSError as error:
            path = self._log_file
            raise LaunchFailed(f"the log file {path} can't be written: {error.strerror or error}; XI_HOME says where logs go") from error
        try:
            with log_to:
                env = environment(os.environ, plan, self.record.spec.env, self.python)
                command = [str(self.python or self._command[0]), *self._command[1:]]
                self._process = ReplicaProcess(command, seen_by_engine(self._with_secret(plan)), env, log_to)
        except BlockingIOError:
            raise  # the system has no room for a process, now
        except OSError as error:
            raise LaunchFailed(f"the process of {plan.replica_id} could not be started: {error.strerror or error}") from error
        self._guard.add(self._process.pid, tag(plan))
        self.record.status.pid = self._process.pid
        self._tell("STARTING", "process started")

    def _with_secret(self, plan: LaunchPlan) -> LaunchPlan:
        """The plan as the process gets it."""
        security = plan.security
        return plan if security is None else msgspec.structs.replace(plan, security=msgspec.structs.replace(security, secret=self._secret))

    # ---- watching -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        process = self._process
        if process is None:
            return
        vitals = Vitals(self.plan, self._start.deadline)  # counted from here: the time of a download isn't the engine's
        while process.returncode is None:
            report = await self._until_stopped(asyncio.ensure_future(_next(process, POLL)))
            if self._stopping.is_set():
                await self._terminate(process)
                return
            if isinstance(report, wire.Failed):
                self._failure = XiError.from_body(report.error)
                await _exited(process, EXIT_TIMEOUT)
                break
            if report is not None:
                self._heed(report, vitals)
            if logs.is_large(self._log_file):
                with contextlib.suppress(BlockingIOError):  # there is no thread for it: at the next look
                    await in_thread(lambda: logs.bound(self._log_file))
            reason = vitals.overdue(ready=self.record.status.state == "READY")
            if reason:
                self.error = reason
                process.kill()
                return
        await self._explain(process)

    def _heed(self, report: wire.Report, vitals: Vitals) -> None:
        vitals.heard()
        match report:
            case wire.Stage() if self.record.status.state != "READY":
                self._tell("LOADING", report.stage, report.progress)
            case wire.Ready():
                record = self.record
                record.endpoint, record.context_length = report.endpoint, report.context_length
                record.slots, record.manifest, record.sleep = report.slots, report.manifest, report.sleep
                vitals.well()
                self._tell("READY", "ready")
            case wire.Obeyed():
                self.record.status.asleep = report.level
                self._tell("READY", "asleep" if report.level else "ready")
                self._orders.obeyed(report)
            case wire.Health():
                if report.healthy:
                    vitals.well()
                else:
                    vitals.unwell(report.reason)

    async def _explain(self, process: ReplicaProcess) -> None:
        """Say why a process has ended that nobody asked to: by its last report, or by its log.

        One rank of several may have failed because a port was taken meanwhile, or another rank died: with other ports that may go well.
        """
        while self._failure is None and (report := await _next(process, POLL)) is not None:
            if isinstance(report, wire.Failed):
                self._failure = XiError.from_body(report.error)
        if self._failure is not None:
            self.error, self.code = self._failure.message, self._failure.code
            self.final = self.record.status.state != "READY" and (self.prepared is None or isinstance(self._failure, LaunchError))
            return
        last = logs.tail(self._log_file)
        self.error = f"{self.plan.replica_id} {how_ended(process.returncode)}" + (
            f"; the last lines of its log:\n{last}" if last else "; its log is empty"
        )

    async def _others_told(self) -> None:
        """Of one rank of several that has said why it can't go on: wait until another's end is told, which ends this one, or isn't.

        It may have lost that other one only, and is the first to know; why that has ended, its own worker knows.
        """
        if not self._stopping.is_set():
            self._tell("STOPPING", f"ended: {self.error}")
            await self._until_stopped(asyncio.ensure_future(asyncio.sleep(OTHERS)))

    # ---- ending ---------------------------------------------------------------------------------

    async def _terminate(self, process: ReplicaProcess) -> None:
        """Drain for the grace that was given, which another `stop` may shorten."""
        self._tell("STOPPING", "stopping")
        process.terminate()
        began = time.monotonic()
        while process.returncode is None and time.monotonic() - began < (self._grace or 0.0):
            await _exited(process, 0.05)
        process.kill()

    async def _clean_up(self) -> None:
        process = self._process
        if process is None:
            return
        self._orders.end(self.error or f"{self.plan.replica_id} was stopped")
        process.kill()
        await _exited(process, KILL_TIMEOUT)
        tags = {tag(self.plan)}
        await surely(lambda: keeper.kill_tagged(tags))  # which looks at every process of the machine
        self._guard.drop(process.pid)
        process.close()
        self.record.status.pid = None
        await surely(lambda: _remove_socket(self.plan.endpoint))

    async def _until_stopped(self, work: asyncio.Future[T]) -> T | None:
        """The result of `work`, or None when `stop` comes first."""
        stop = asyncio.ensure_future(self._stopping.wait())
        awaited: set[asyncio.Future[Any]] = {work, stop}
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            stop.cancel()
            work.cancel()

    def _tell(self, state: LaunchState, stage: str, progress: float | None = None, download: ModelTransfer | None = None) -> None:
        status = self.record.status
        if state == "PREPARING" and status.state not in ("PENDING", "PREPARING"):
            return  # a late word of the fetching thread
        status.state, status.stage, status.progress, status.download = state, stage, progress, download
        self._on_change(self)


async def _next(process: ReplicaProcess, timeout: float) -> wire.Report | None:
    """The next report; None when there is none in this time, or the pipe is closed."""
    try:
        async with asyncio.timeout(timeout):
            return await process.reports.get()
    except TimeoutError:
        return None


async def _exited(process: ReplicaProcess, timeout: float) -> None:
    """Wait for the process to end, for this long at most."""
    until = time.monotonic() + timeout
    while process.returncode is None and time.monotonic() < until:  # noqa: ASYNC110 - a process gives no event
        await asyncio.sleep(0.02)


def _remove_socket(endpoint: str) -> None:
    """A killed replica leaves its socket's file."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc":
        with contextlib.suppress(OSError):
            Path(address).unlink(missing_ok=True)
