"""The executor: carries out what the pure `lifecycle` decides, keeps its clock, and tells gateways what changed. Part of the supervisor."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from msgspec import Struct

from xi_core.api.control import ProcessInfo
from xi_core.cluster import rendezvous
from xi_core.cluster.desired import Desired
from xi_core.cluster.launches import LaunchEntry, Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.matching import WorkerLink
from xi_core.cluster.messages import StartReplica, StopReplica
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.cluster.resolve import Resolver
from xi_core.cluster.table import RoutingTable
from xi_core.config import Settings
from xi_core.errors import DeadlineExceeded, LaunchError, TransportError, Unavailable, XiError
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Link
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan, LoraModule, ReplicaSecurity, ServingLimits

log = logging.getLogger(__name__)

JOIN_TIMEOUT = 5.0
"""Seconds for which a launch waits for a worker to join."""


class Executor:
    """The links to workers and gateways, and the timer of the lifecycle."""

    def __init__(
        self, hub: PluginHub, config: Settings, lifecycle: Lifecycle, table: RoutingTable, replica_transport: str, settled_at: float
    ) -> None:
        """`replica_transport` is the `module:Class` that replicas listen with; at `settled_at` workers have reported what runs."""
        self.workers: dict[str, WorkerLink] = {}
        self.gateways: dict[Link, ProcessInfo] = {}
        self.table = table
        self.desired: Desired | None = None
        """Where what is wanted is written down; None: nowhere."""
        self.gateways_key = ""
        """The public key of gateways, for replicas that listen off their machine; empty where none does."""
        self._hub, self._settings, self._lifecycle, self._replica_transport = hub, config, lifecycle, replica_transport
        self.resolver = Resolver(hub, config, self.any_workers)
        self._settled_at = settled_at
        self._moved = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: dict[str, float] = {}
        """By uid, the launches that are logged as FAILED, by when they ended."""

    def do(self, actions: list[Action]) -> None:
        """Carry out what the lifecycle decided, and tell everybody what changed."""
        for action in actions:
            if isinstance(action, Start):
                self._spawn(self._start_replica(action))
            else:
                self._spawn(self._stop_replica(action))
        changes = self._lifecycle.changes()
        self._log_failures(changes)
        if self.desired is not None and (changes or self._lifecycle.drains != self.desired.drains):
            self.desired.keep(self._lifecycle.wanted(), self._lifecycle.drains)
        self._publish(changes)
        self._moved.set()
        self._moved = asyncio.Event()
        if self._timer is not None:
            self._timer.cancel()
        wake = self._lifecycle.next_wake()
        if wake is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.01, wake - time.monotonic()), self._tick)

    async def settled(self) -> None:
        """Wait until workers have reported what runs: before that nobody can say what is to begin or to end."""
        await asyncio.sleep(max(0.0, self._settled_at - time.monotonic()))

    async def kept(self) -> None:
        """Wait until what is wanted is written down."""
        if self.desired is not None:
            await self.desired.kept()

    def _tick(self) -> None:
        self.do(self._lifecycle.tick(time.monotonic()))

    def _log_failures(self, changes: Mapping[str, LaunchEntry | None]) -> None:
        """Each once, whatever it failed of."""
        for uid, launch in changes.items():
            if launch is None or launch.end != "FAILED":
                self._failed.pop(uid, None)
            elif self._failed.get(uid) != launch.ended_at:
                self._failed[uid] = launch.ended_at
                log.error("launch %s FAILED: %s", uid, launch.error)

    def _publish(self, changes: Mapping[str, LaunchEntry | None]) -> None:
        update = self.table.change({uid: launch.route() if launch is not None else None for uid, launch in changes.items()})
        if update is not None:
            self.tell_gateways(update)

    def tell_gateways(self, notice: Struct) -> None:
        """Send all gateways a notice. One that doesn't take it begins anew: without it, it would be wrong until the next change."""
        for link in [one for one in self.gateways if not one.closed.is_set()]:
            try:
                link.notify(notice)
            except TransportError as error:
                log.warning("a gateway doesn't take %s: %s", type(notice).__name__, error)
                link.lose(error)

    async def _start_replica(self, action: Start) -> None:
        launch = self._lifecycle.find(action.uid)
        if launch is None:
            self._gone(action, 0, Unavailable(f"'{action.uid}' is not wanted any more"))
            return
        try:
            commands = [self._command(action, launch.wanted_of(action.replica_id), rank) for rank in range(len(action.assignments))]
        except XiError as error:  # a plugin is gone that a worker still has
            self._gone(action, 0, error)
            return
        try:
            if len(commands) > 1:
                commands = await rendezvous.prepare(self.workers, action.assignments, commands)
            await asyncio.gather(
                *(rendezvous.ask(self.workers, a, c, n) for n, (a, c) in enumerate(zip(action.assignments, commands, strict=True)))
            )
        except rendezvous.RankError as error:
            self._gone(action, error.rank, error.reason)

    def _gone(self, action: Start, rank: int, error: XiError) -> None:
        """A rank could not be started. Where its worker fell silent, the next registration tells whether the command came through."""
        if isinstance(error, TransportError):
            return
        final = isinstance(error, LaunchError)
        code = error.code if final else None
        self.do(self._lifecycle.replica_gone(time.monotonic(), action.incarnation, error.message, final, code, rank))

    async def _stop_replica(self, action: Stop) -> None:
        worker = self.workers.get(action.worker)
        if worker is None:
            return  # when it comes back and still has it, it is told again
        try:
            await worker.link.call(StopReplica(action.replica_id, action.grace, action.incarnation, action.rank))
        except XiError as error:
            log.warning("worker %s was asked to stop %s: %s", action.worker, action.replica_id, error)

    def _command(self, action: Start, wanted: Wanted, rank: int) -> StartReplica:
        """What starts one rank, but for the rendezvous."""
        plan = self._plan(action, wanted, rank)
        return StartReplica(
            spec=wanted.spec,
            model=wanted.model,
            plan=plan,
            created=wanted.created,
            deadline=action.deadline,
            restarts=action.restarts,
            moves=action.moves,
        )

    def _plan(self, action: Start, wanted: Wanted, rank: int) -> LaunchPlan:
        """The plan of one rank; its worker fills in the endpoint and the paths of its own disk."""
        engine, model, config = self._hub.engines.get(wanted.engine), wanted.model, self._settings
        return LaunchPlan(
            uid=wanted.uid,
            replica_id=action.replica_id,
            incarnation=action.incarnation,
            engine=EngineRef(name=engine.name, path=engine.engine_for(model.model_type)),
            artifact=Artifact(format=model.format, path="", quantization=model.quantization),
            endpoint="",
            transport=self._replica_transport,
            options=wanted.spec.options,
            devices=list(action.assignments[rank].devices),
            parsers=self.resolver.parsers(model),
            chat_template=model.chat_template,
            stop=list(model.stop),
            stop_token_ids=list(model.stop_token_ids),
            enable_thinking=wanted.spec.enable_thinking,
            lora_modules=[LoraModule(name=name, path=path) for name, path in wanted.spec.lora_modules.items()],
            memory=wanted.memory,
            memory_share=wanted.memory_share,
            exclusive=wanted.exclusive,
            security=ReplicaSecurity(gateways=self.gateways_key) if self.gateways_key else None,
            limits=ServingLimits(
                batch_size=config.batch_size,
                batch_interval=config.batch_interval,
                queue=config.queue_size,
                hang_timeout=config.hang_timeout,
                grace=config.grace,
                launch_timeout=config.launch_timeout,
            ),
            log_level=config.log_level,
            trust_remote_code=wanted.spec.trust_remote_code,
        )

    async def any_workers(self) -> Mapping[str, WorkerLink]:
        """The connected workers, at least one. Raises `Unavailable` when none joins in time."""
        try:
            await self.until(lambda: bool(self.workers), JOIN_TIMEOUT, "")
        except DeadlineExceeded:
            raise Unavailable("no worker is connected yet; try again in a moment", retry_after=1.0) from None
        return dict(self.workers)

    async def until(self, true: Callable[[], bool], timeout: float, late: str) -> None:
        """Wait until something holds; it is looked at after each event. Raises `DeadlineExceeded` with the message `late`."""
        try:
            async with asyncio.timeout(timeout):
                while not true():
                    await self._moved.wait()
        except TimeoutError:
            raise DeadlineExceeded(late) from None

    def close(self) -> None:
        """Do nothing more. What runs, runs on."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
