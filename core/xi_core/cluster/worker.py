"""Worker: the agent of one machine. `python -m xi_core.cluster.worker`: registers with the supervisor and runs replicas for it.

Replicas outlive the supervisor, but never the worker: its keeper sees to that. While the supervisor is away they go on serving, and the
worker dials until it is back and tells it what it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xi_core import __version__
from xi_core.cluster import host
from xi_core.cluster.guard import Guard
from xi_core.cluster.messages import (
    ANSWERS,
    NOTICES,
    Done,
    Inspect,
    Inspected,
    Leaving,
    MatchEngine,
    Matches,
    Prepare,
    Prepared,
    Register,
    ReplicaGone,
    ReplicaRecord,
    ReplicaUpdate,
    StartReplica,
    StopReplica,
)
from xi_core.cluster.ports import PortBlock, PortRange, interface_of
from xi_core.cluster.process import REPLICA_COMMAND
from xi_core.cluster.replicas import rank_of
from xi_core.cluster.running import RunningReplica, in_thread
from xi_core.cluster.sibling import announce, exit_status, set_up_logging, stop_event
from xi_core.config import Settings, settings
from xi_core.errors import ArtifactError, Conflict, PluginError, TransportError, Unavailable, XiError
from xi_core.importing import import_path
from xi_core.models.family import SourceRef
from xi_core.models.source import Progress, Source
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls, Link, dial
from xi_core.transport.schemes import by_scheme
from xi_core.transport.vocabulary import Vocabulary
from xi_core.wire import PROTOCOL
from xi_core.wire.plan import RankAddress, Rendezvous

log = logging.getLogger(__name__)

VOCABULARY = Vocabulary(ANSWERS, NOTICES)
REDIAL_FIRST, REDIAL_MOST = 0.1, 1.0
REGISTER_TIMEOUT = 5.0
LEAVE_TIMEOUT = 1.0
KEEPER_POLL = 0.5
STOP_MARGIN = 2.0
"""Seconds beyond the grace in which replicas must be gone when the worker stops."""


class Worker:
    """One worker: its link to the supervisor and the replicas that it runs."""

    def __init__(
        self,
        hub: PluginHub,
        config: Settings,
        *,
        name: str,
        runtime: Path,
        supervisor: str,
        address: str = "127.0.0.1",
        command: Sequence[str] = REPLICA_COMMAND,
    ) -> None:
        """`address` is the host under which other machines reach this one. `command` starts a replica, without its arguments."""
        self._address = address
        self.name = name
        self.registered = asyncio.Event()
        """Set while the supervisor knows this worker."""
        self._hub, self._settings, self._runtime, self._supervisor, self._command = hub, config, runtime, supervisor, command
        self._home = config.home_dir
        self._incarnation = secrets.token_hex(4)
        self._devices = host.find_devices(hub.devices, os.environ)
        self._host = host.host_info(self._devices)
        self._engines = host.probe_engines(hub.engines, self._host)
        self._guard = Guard()
        self._link: Link | None = None
        self._stopping = False
        self._introduced = False
        """Whether the supervisor has been told on this link who this is: what is said next comes after it."""
        self._running: dict[str, RunningReplica] = {}
        self._ports = PortRange.parse(config.port_range)
        self._blocks: dict[str, PortBlock] = {}
        """Ports kept for ranks that wait for others, by incarnation."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._unreported: list[ReplicaRecord] = []
        """Replicas that ended while the supervisor was away."""

    async def serve(self, stop: asyncio.Event) -> None:
        """Stay registered until `stop`, then end every replica and the keeper."""
        try:
            keeping = [asyncio.ensure_future(self._stay_linked()), asyncio.ensure_future(self._watch_keeper())]
            await stop.wait()
            await self._stop_all()
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.wait(keeping)
            if self._link is not None:
                await self._link.close()
            self._guard.close()

    # ---- the link -------------------------------------------------------------------------------

    async def _stay_linked(self) -> None:
        transport = by_scheme(self._hub.transports, self._supervisor)
        calls: Calls = {
            Inspect: self._inspect,
            MatchEngine: self._match,
            Prepare: self._prepare,
            StartReplica: self._start,
            StopReplica: self._stop,
        }
        wait = REDIAL_FIRST
        while True:
            try:
                link = dial(transport, self._supervisor, VOCABULARY, calls, lambda: None)
                try:
                    self._link = link
                    await self._register()
                    wait = REDIAL_FIRST
                    await link.closed.wait()
                    log.warning("the supervisor is away; replicas go on serving")
                    self._drop_waiting()
                finally:
                    self._link, self._introduced = None, False
                    self.registered.clear()
                    await link.close()
            except XiError as error:
                log.debug("no link to the supervisor: %s", error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, REDIAL_MOST)

    def _drop_waiting(self) -> None:
        """Ranks that wait for others wait for the supervisor's word, which won't come: it will start all anew."""
        for replica in self._running.values():
            if replica.waits:
                replica.stop(0.0)

    async def _register(self) -> None:
        """Tell who this is and what it runs. Raises the supervisor's error, or a `TransportError`."""
        if self._link is None:
            return
        told = self._unreported
        command = Register(
            worker=self.name,
            incarnation=self._incarnation,
            pid=os.getpid(),
            keeper_pid=self._guard.pid,
            version=__version__,
            protocol=PROTOCOL,
            devices=self._devices,
            engines=self._engines,
            address=self._address,
            plugins={record.name: record.version for record in self._hub.records if record.state == "loaded"},
            cpus=self._host.cpus,
            memory=self._host.memory,
            replicas=[*(r.record for r in self._running.values() if not r.waits), *told],
        )
        self._unreported, self._introduced = [], True
        try:
            await self._link.call(command, timeout=REGISTER_TIMEOUT)
        except XiError:
            self._unreported = told + self._unreported
            raise
        self.registered.set()

    async def _watch_keeper(self) -> None:
        while True:
            await asyncio.sleep(KEEPER_POLL)
            if self._guard.restart_if_dead() and self.registered.is_set():
                with contextlib.suppress(XiError):  # the next registration tells it
                    await self._register()

    # ---- what the supervisor asks ---------------------------------------------------------------

    async def _inspect(self, command: Inspect) -> Inspected:
        return Inspected(await in_thread(lambda: host.inspect_path(self._hub.engines, Path(command.path))))

    async def _match(self, command: MatchEngine) -> Matches:
        return Matches(host.match_engines(self._hub.engines, command.model, self._host))

    async def _prepare(self, command: Prepare) -> Prepared:
        """Get one rank of several ready, and keep ports for it until it starts."""
        block = self._ports.take(self._address)
        try:
            own = RankAddress(
                rank=command.rank,
                worker=self.name,
                host=self._address,
                ports=block.ports,
                devices=tuple(command.plan.devices),
                interface=interface_of(self._address),
            )
            plan = msgspec.structs.replace(command.plan, rendezvous=Rendezvous(rank=command.rank, world=()))
            start = StartReplica(spec=command.spec, model=command.model, plan=plan, created=command.created, deadline=command.deadline)
            replica = self._run(start, shared=True)
        except XiError:
            block.release()
            raise
        self._blocks[plan.incarnation] = block
        assert replica.prepared is not None
        await asyncio.shield(replica.prepared)
        return Prepared(own)

    async def _start(self, command: StartReplica) -> Done:
        plan = command.plan
        if plan.rendezvous is None:
            self._run(command, shared=False)
            return Done()
        prepared = self._running.get(plan.replica_id)
        if prepared is None or prepared.plan.incarnation != plan.incarnation or not prepared.waits:
            raise Conflict(f"rank {plan.rendezvous.rank} of {plan.replica_id} is not prepared on worker {self.name}")
        self._blocks.pop(plan.incarnation).release()
        prepared.begin(msgspec.structs.replace(plan, endpoint=prepared.plan.endpoint))
        return Done()

    def _run(self, command: StartReplica, *, shared: bool) -> RunningReplica:
        plan = command.plan
        if self._stopping:
            raise Unavailable(f"worker {self.name} is being stopped")
        if plan.replica_id in self._running:
            raise Conflict(f"replica {plan.replica_id} runs on worker {self.name} already")
        command.plan = msgspec.structs.replace(plan, endpoint=self._endpoint(plan.incarnation))
        replica = RunningReplica(
            command,
            worker=self.name,
            home=self._home,
            fetch=self._fetch,
            guard=self._guard,
            on_change=self._changed,
            command=self._command,
            shared=shared,
        )
        self._running[plan.replica_id] = replica
        task = asyncio.ensure_future(self._live(replica))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return replica

    async def _stop(self, command: StopReplica) -> Done:
        replica = self._running.get(command.replica_id)
        if replica is not None and command.incarnation in ("", replica.plan.incarnation):
            replica.stop(command.grace)
        elif self._link is not None:  # the supervisor thinks that it lives
            self._link.notify(ReplicaGone(replica_id=command.replica_id, uid="", incarnation=command.incarnation, rank=command.rank))
        return Done()

    def _endpoint(self, incarnation: str) -> str:
        """Where a replica listens. By incarnation, so that no other life of it can answer there."""
        if self._supervisor.startswith("ipc:"):
            return f"ipc://{self._runtime / incarnation}.sock"
        return "tcp://127.0.0.1:0"

    # ---- replicas -------------------------------------------------------------------------------

    async def _live(self, replica: RunningReplica) -> None:
        plan = replica.plan
        await replica.run()
        del self._running[plan.replica_id]
        if (block := self._blocks.pop(plan.incarnation, None)) is not None:
            block.release()
        if replica.error:
            log.warning("%s", replica.error)
        gone = ReplicaGone(
            replica_id=plan.replica_id,
            uid=plan.uid,
            error=replica.error,
            code=replica.code,
            incarnation=plan.incarnation,
            final=replica.final,
            rank=rank_of(replica.record),
        )
        if not self._notify(gone) and replica.error:
            status = msgspec.structs.replace(replica.record.status, state="FAILED", error=replica.error)
            self._unreported.append(msgspec.structs.replace(replica.record, status=status))

    def _changed(self, replica: RunningReplica) -> None:
        self._notify(ReplicaUpdate(replica.record))

    def _notify(self, notice: ReplicaUpdate | ReplicaGone) -> bool:
        """Tell the supervisor, if it is there: registering again will tell it the rest."""
        if self._link is None or not self._introduced:
            return False
        try:
            self._link.notify(notice)
        except TransportError:
            return False
        return True

    def _fetch(self, ref: SourceRef, progress: Progress) -> Path:
        """In a thread: the artifact that `ref` names."""
        info = self._hub.sources.find(ref.source)
        if info is None:
            raise ArtifactError(
                f"no plugin offers the model source '{ref.source}'; known: {', '.join(self._hub.sources.names()) or 'none'}"
            )
        source = import_path(info.source)()
        if not isinstance(source, Source):
            raise PluginError(f"model source '{info.name}': {info.source} is not a subclass of xi_core.models.source.Source")
        return source.fetch(ref, self._home, progress)

    async def _stop_all(self) -> None:
        self._stopping = True
        if self._link is not None:
            with contextlib.suppress(XiError):  # it will notice
                await self._link.call(Leaving(self.name), timeout=LEAVE_TIMEOUT)
        for replica in self._running.values():
            replica.stop(self._settings.grace)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.grace + STOP_MARGIN)


async def run(arguments: argparse.Namespace) -> None:
    """Be a worker until told to stop."""
    config = settings()
    stop = stop_event(arguments.watch_stdin)
    hub = PluginHub.load(config.plugins)
    worker = Worker(hub, config, name=arguments.name, runtime=Path(arguments.runtime), supervisor=arguments.supervisor)
    serving = asyncio.ensure_future(worker.serve(stop))
    ready = asyncio.ensure_future(worker.registered.wait())
    await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        announce("worker", arguments.name)
    ready.cancel()
    await serving


def main() -> int:
    """The process's entry. Answers its exit status."""
    parser = argparse.ArgumentParser(prog="python -m xi_core.cluster.worker", description="The worker of one machine.")
    parser.add_argument("--supervisor", required=True, help="endpoint of the supervisor")
    parser.add_argument("--runtime", required=True, help="directory for sockets")
    parser.add_argument("--name", default=socket.gethostname(), help="this worker's name; default: the machine's")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when stdin ends")
    arguments = parser.parse_args()
    set_up_logging("worker", settings().log_level)
    return exit_status(run(arguments))


if __name__ == "__main__":
    sys.exit(main())
