"""The life of a replica's process: read the plan, load, probe, report, serve, drain, end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import struct
import threading
from typing import Any, BinaryIO

import msgspec

from xi_core.engine.base import ApiEngine, Engine, LoadedModel, TokenEngine
from xi_core.engine.pooling import PoolingEngine
from xi_core.engine.rank_link import Leader
from xi_core.errors import EngineError, EngineNotInstalled, ErrorBody, PluginError, XiError
from xi_core.importing import import_path
from xi_core.replica.lifeline import die_with_parent, watch_stdin
from xi_core.replica.orders import Orders
from xi_core.replica.rank import serve_rank
from xi_core.replica.server import ReplicaServer
from xi_core.serving.events import ApiService
from xi_core.serving.pooling import BatchService
from xi_core.serving.pooling_events import ApiPoolingService
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK
from xi_core.serving.progress import probe
from xi_core.serving.service import Service
from xi_core.serving.tokens import TokenService
from xi_core.transport.base import Transport
from xi_core.wire import report
from xi_core.wire.plan import LaunchPlan
from xi_core.wire.report import Failed, Health, Obeyed, Ready, Report, Stage

log = logging.getLogger(__name__)

PROBE_SECONDS = 120.0
"""Longest wait for the first token of a fresh engine, and for one of an idle engine."""
IDLE_PROBE_INTERVAL = 30.0
REPORT_INTERVAL = 0.5
CLOSE_SECONDS = 5.0
MAX_PLAN = 16 * 1024 * 1024


def read_plan(stream: BinaryIO) -> LaunchPlan:
    """The plan that the worker wrote: four bytes of length, big-endian, then msgpack. Raises `EOFError` if the worker is gone."""
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError("the worker closed the pipe before the launch plan")
    (size,) = struct.unpack(">I", head)
    if size > MAX_PLAN:
        raise ValueError(f"a launch plan of {size} bytes")
    return msgspec.msgpack.decode(stream.read(size), type=LaunchPlan)


class Reporter:
    """Writes reports, a JSON line each, to the worker's pipe. Any thread; never blocks.

    A worker that doesn't read loses stages and life signs, of which there are newer ones soon, but no `Ready`, `Obeyed` or `Failed`.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._lock = threading.Lock()
        self._unsent = b""

    def send(self, item: Report) -> None:
        """Write one report, after what the pipe had no room for. A worker that is gone is no error: the life line ends this process."""
        with self._lock:
            if not self._unsent or isinstance(item, Ready | Obeyed | Failed):
                self._unsent += report.encode(item) + b"\n"
            try:
                self._unsent = self._unsent[os.write(self._fd, self._unsent) :]
            except OSError as error:
                log.debug("the worker doesn't read reports: %s", error)

    def stage(self, stage: str, progress: float | None = None) -> None:
        """Report a stage of the launch."""
        self.send(Stage(stage, progress))


def run(plan: LaunchPlan, report_fd: int) -> int:
    """Serve until asked to stop. The exit status: 0 after a stop, 1 after a failure, which was reported."""
    die_with_parent()
    reporter = Reporter(report_fd)
    try:
        asyncio.run(_serve(plan, reporter))
    except Exception as error:  # the last stop: whatever it was, the worker is told and the log has the traceback
        log.exception("the replica ends")
        reporter.send(Failed(_body(error)))
        return 1
    return 0


def _body(error: Exception) -> ErrorBody:
    if isinstance(error, XiError):
        return error.body()
    return EngineError(f"{type(error).__name__}: {error}").body()


def load_engine(plan: LaunchPlan, reporter: Reporter) -> tuple[Engine, LoadedModel]:
    """Import the engine that the plan names and load the model. Raises `EngineNotInstalled` where its library can't be imported."""
    reporter.stage("importing")
    try:
        engine: Engine = import_path(plan.engine.path)()
    except ImportError as error:
        raise EngineNotInstalled(f"engine {plan.engine.name} can't be imported: {error}; see `xi engines` for how to install it") from error
    if not isinstance(engine, TokenEngine | ApiEngine | PoolingEngine):
        raise PluginError(f"engine {plan.engine.name}: {plan.engine.path} is no TokenEngine, ApiEngine or PoolingEngine")
    reporter.stage("loading", 0.0)
    return engine, engine.load(plan, reporter.stage)


def service_for(plan: LaunchPlan, engine: Engine, model: LoadedModel) -> Service:
    """The serving layer for the engine's kind. Call on the loop."""
    if isinstance(engine, TokenEngine):
        return TokenService(plan, engine, model)
    if isinstance(engine, ApiEngine):
        pools = model.manifest.serves(EMBEDDINGS) or model.manifest.serves(RERANK)
        return ApiPoolingService(plan, engine, model) if pools else ApiService(plan, engine, model)
    if isinstance(engine, PoolingEngine):
        return BatchService(plan, engine, model)
    raise PluginError(f"engine {plan.engine.name} is no TokenEngine, ApiEngine or PoolingEngine")


async def _serve(plan: LaunchPlan, reporter: Reporter) -> None:
    loop = asyncio.get_running_loop()
    orders = Orders(reporter.send)
    watch_stdin(_worker_is_gone, orders.take)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    loading = loop.run_in_executor(None, load_engine, plan, reporter)
    if not await _unless(stop, loading):
        log.info("stopped while loading")
        os._exit(0)  # the loading thread can't be interrupted
    engine, model = loading.result()
    if plan.rendezvous is not None and plan.rendezvous.rank > 0:
        _spare_the_collector()
        await serve_rank(engine, model, reporter.send, stop, plan.limits.grace)
        return
    if isinstance(engine, TokenEngine) and engine.rank_link is not None:
        engine = Leader(engine, engine.rank_link)
    service = service_for(plan, engine, model)
    reporter.stage("warming up")
    await probe(service, PROBE_SECONDS)
    _spare_the_collector()
    transport: Transport = import_path(plan.transport)()
    server = ReplicaServer(service, transport)
    model = service.model  # what xi itself can't add is out of its manifest
    ready = {name: getattr(model, name) for name in ("context_length", "slots", "manifest", "sleep")}
    reporter.send(Ready(endpoint=server.endpoint, **ready))
    obeying = asyncio.create_task(orders.obey(service))
    try:
        await _until_stopped(service, reporter, stop)
        service.draining = True
        server.tell()  # before the channel's end: a request that comes too late to be answered isn't to blame for that
        await service.drain(plan.limits.grace)
    finally:
        obeying.cancel()
        await server.close(CLOSE_SECONDS)
        service.close(CLOSE_SECONDS)
        transport.finish(CLOSE_SECONDS)  # this process ends by `os._exit`, which waits for nobody's threads


def _spare_the_collector() -> None:
    """What start-up made stays, and garbage collection need not look at it again.

    With PyTorch a whole one holds all threads for 0.3 s, on a busy machine for a second: no ping is answered meanwhile.
    """
    gc.collect()
    gc.freeze()


def _worker_is_gone() -> None:
    log.error("the worker is gone; this replica ends")
    os._exit(3)


async def _unless(stop: asyncio.Event, work: asyncio.Future[tuple[Engine, LoadedModel]]) -> bool:
    """Wait for `work`; False when `stop` came first."""
    stopped = asyncio.ensure_future(stop.wait())
    awaited: set[asyncio.Future[Any]] = {stopped, work}
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    return work.done()


async def _until_stopped(service: Service, reporter: Reporter, stop: asyncio.Event) -> None:
    """Report health until stopped. Raises `EngineError` when the engine has failed for good, so that the worker starts another."""
    probes = asyncio.create_task(_probe_when_idle(service))
    try:
        await _report_health(service, reporter, stop, probes)
    finally:
        probes.cancel()
        await asyncio.wait([probes])


async def _probe_when_idle(service: Service) -> None:
    """Ask an engine that nobody asks for a token now and then. Raises `EngineError` when none comes."""
    while True:
        await asyncio.sleep(IDLE_PROBE_INTERVAL)
        if service.busy or service.asleep:
            continue
        try:
            await probe(service, PROBE_SECONDS)
        except EngineError:
            if not service.asleep:  # put to sleep meanwhile, it gives no token
                raise


async def _report_health(service: Service, reporter: Reporter, stop: asyncio.Event, probes: asyncio.Task[None]) -> None:
    while not stop.is_set():
        if probes.done():
            probes.result()
        load, reason = service.load(), service.unhealthy()
        reporter.send(Health(healthy=reason is None, steps=load.steps, running=load.running, waiting=load.waiting, reason=reason or ""))
        if service.failure is not None:
            raise service.failure
        try:
            await asyncio.wait_for(stop.wait(), REPORT_INTERVAL)
        except TimeoutError:
            continue
