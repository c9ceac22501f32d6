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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from xi_core import __version__
from xi_core.api.control import EnvironmentStatus, LogPart, has_environment
from xi_core.cluster import addresses, host, joining, logs
from xi_core.cluster import messages as m
from xi_core.cluster.cached_models import CachedModels
from xi_core.cluster.control_process import announce, announce_stop, exit_status, first_of, set_up_logging, stop_event, unless
from xi_core.cluster.data_plane import placed
from xi_core.cluster.device_watch import LOOK, DeviceWatch
from xi_core.cluster.devices import Device, real
from xi_core.cluster.environments import Environments
from xi_core.cluster.fetching import fetcher
from xi_core.cluster.guard import Guard
from xi_core.cluster.linking import SupervisorLink
from xi_core.cluster.membership import Identity, enter, token_of
from xi_core.cluster.ports import PortBlock, PortRange, interface_of
from xi_core.cluster.process import REPLICA_COMMAND
from xi_core.cluster.remote_code import check_remote_code, granted
from xi_core.cluster.replicas import rank_of
from xi_core.cluster.requirement import check_environment, joined, needed
from xi_core.cluster.running import RunningReplica
from xi_core.cluster.sleeping import ReplicaSleep
from xi_core.cluster.threads import in_thread
from xi_core.config import Settings, settings
from xi_core.errors import Conflict, Unavailable, XiError
from xi_core.models.source import Progress
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls
from xi_core.transport.schemes import by_scheme
from xi_core.transport.security import ClientSecurity, KeyPair
from xi_core.wire import PROTOCOL
from xi_core.wire.plan import RankAddress, Rendezvous

log = logging.getLogger(__name__)

LEAVE_TIMEOUT = 1.0
KEEPER_POLL = 0.5
FORMER = 20.0
"""Seconds for which a replica waits for a former life of it to be gone, which was told to end."""
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
        security: ClientSecurity | None = None,
        command: Sequence[str] = REPLICA_COMMAND,
    ) -> None:
        """`address` is the host under which other machines reach this one. `security`: where the supervisor knows this worker by its key,
        and replicas listen for gateways of other machines. `command` starts a replica, without its arguments."""
        self.name, self._address = name, address
        self.stop_asked = asyncio.Event()
        """Set when the supervisor has told this worker to stop."""
        self._hub, self._settings, self._runtime, self._supervisor, self._command = hub, config, runtime, supervisor, command
        self._home = config.home_dir
        self._incarnation = secrets.token_hex(4)
        self._devices = self._find_devices()
        self._host = host.host_info(self._devices)
        self._engines = host.probe_engines(hub.engines, self._host)
        self._watch = DeviceWatch(self._devices, self._find_devices, self._beat)
        self._guard = Guard()
        live = self._running = dict[str, RunningReplica]()
        calls: Calls = {
            m.Inspect: self._inspect,
            m.MatchEngines: self._match,
            m.Prepare: self._prepare,
            m.StartReplica: self._start,
            m.StopReplica: self._stop,
            m.FetchLog: self._fetch_log,
            m.ListEnvironments: self._list_environments,
            m.RemoveEnvironment: self._remove_environment,
            m.Shutdown: self._shutdown,
            **ReplicaSleep(live).calls(),
            **CachedModels(name, hub.sources, config, lambda: {id: str(r.artifact or "") for id, r in live.items()}).calls(),
        }
        self._secure, self._local = security is not None, supervisor.startswith("ipc:")
        self._link = SupervisorLink(by_scheme(hub.transports, supervisor), supervisor, security, calls, self._introduce, self._drop_waiting)
        self._losses, self._stopping = 0, False
        """How often the link to the supervisor was lost, and whether this worker was told to stop."""
        self._environments = Environments(self._home, os.environ)
        self._ports = PortRange.parse(config.port_range)
        self._blocks: dict[str, PortBlock] = {}
        """Ports kept for ranks that wait for others, by incarnation."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._unreported: list[m.ReplicaRecord] = []
        """Replicas that ended while the supervisor was away."""

    @property
    def registered(self) -> asyncio.Event:
        """Set while the supervisor knows this worker."""
        return self._link.registered

    async def serve(self, stop: asyncio.Event, tell: Callable[[], None] | None = None) -> None:
        """Stay registered until `stop`, then end every replica and the keeper. `tell` is called where the supervisor has said so.

        Raises the supervisor's error if it isn't let in at all.
        """
        try:
            lasting = (self._link.keep(), self._watch_keeper(), self._watch.run())
            keeping = [asyncio.ensure_future(work) for work in lasting]
            await first_of(stop, self.stop_asked, self._link.refused)
            if self.stop_asked.is_set() and tell is not None:
                tell()
            await self._stop_all()
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.wait(keeping)
            await self._link.close()
            self._guard.close()
        if self._link.refusal is not None:
            raise self._link.refusal

    def _find_devices(self) -> list[Device]:
        return host.find_devices(self._hub.devices, os.environ)

    # ---- the link -------------------------------------------------------------------------------

    def _drop_waiting(self) -> None:
        """Ranks that wait for others wait for the supervisor's word, which won't come: it will start all anew."""
        self._losses += 1
        for replica in self._running.values():
            if replica.waits:
                replica.stop(0.0)

    def _introduce(self) -> tuple[m.Register, Callable[[], None]]:
        """Who this is and what it runs; and what forgets the ended replicas that are told of."""
        told = list(self._unreported)
        command = m.Register(
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
            host=self._host,
            leaving=self._stopping,
            replicas=[*(r.record for r in self._running.values() if not (r.waits and r.stopping)), *told],
        )

        def known() -> None:
            del self._unreported[: len(told)]

        return command, known

    async def _watch_keeper(self) -> None:
        while True:
            await asyncio.sleep(KEEPER_POLL)
            if self._guard.restart_if_dead() and self._link.registered.is_set():
                with contextlib.suppress(XiError):  # the next registration tells it
                    await self._link.register()

    def _beat(self, devices: list[Device]) -> bool:
        self._devices = devices
        return self._link.notify(m.WorkerBeat(worker=self.name, devices=devices))

    # ---- what the supervisor asks ---------------------------------------------------------------

    async def _inspect(self, command: m.Inspect) -> m.Inspected:
        pickled = self._settings.allow_pickled_weights
        return m.Inspected(await in_thread(lambda: host.inspect_path(self._hub.engines, command.path, pickled=pickled)))

    async def _fetch_log(self, command: m.FetchLog) -> LogPart:
        name, rank, previous = command.replica_id, command.rank, command.previous
        path = logs.log_file(self._home, name, rank, previous=previous)
        text, start, following = await in_thread(lambda: logs.part(path, command.start))
        return LogPart(replica_id=name, rank=rank, worker=self.name, text=text, start=start, next=following, previous=previous)

    async def _shutdown(self, command: m.Shutdown) -> m.Done:
        log.info("the cluster is being stopped, and this worker with it")
        self.stop_asked.set()
        return m.Done()

    async def _match(self, command: m.MatchEngines) -> m.Matches:
        return m.Matches(await in_thread(lambda: [host.match_engines(self._hub.engines, model, self._host) for model in command.models]))

    async def _prepare(self, command: m.Prepare) -> m.Prepared:
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
            replica = await self._run(command.start(plan), shared=True)
        except BaseException:
            block.release()
            raise
        self._blocks[plan.incarnation] = block
        assert replica.prepared is not None
        await asyncio.shield(replica.prepared)
        return m.Prepared(own)

    async def _start(self, command: m.StartReplica) -> m.Done:
        plan = command.plan
        if plan.rendezvous is None:
            await self._run(command, shared=False)
            return m.Done()
        prepared = self._running.get(plan.replica_id)
        if prepared is None or prepared.plan.incarnation != plan.incarnation or not prepared.waits:
            raise Conflict(f"rank {plan.rendezvous.rank} of {plan.replica_id} is not prepared on worker {self.name}")
        self._blocks.pop(plan.incarnation).release()
        kept = {name: getattr(prepared.plan, name) for name in ("endpoint", "security", "pickled_weights", "trust_remote_code")}
        prepared.begin(msgspec.structs.replace(plan, **kept))
        return m.Done()

    async def _run(self, command: m.StartReplica, *, shared: bool) -> RunningReplica:
        plan = granted(command.plan, self._settings)
        former, losses = self._running.get(plan.replica_id), self._losses
        if former is not None and former.stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(former.ended.wait(), FORMER)
        if losses != self._losses:  # what it doesn't hear of when this worker registers it takes for lost
            raise Unavailable(f"the supervisor was away while {plan.replica_id} waited for its former life to be gone")
        if self._stopping:
            raise Unavailable(f"worker {self.name} is being stopped")
        if plan.replica_id in self._running:
            raise Conflict(f"replica {plan.replica_id} runs on worker {self.name} already")
        keys = KeyPair.new() if self._secure else None
        command.plan = placed(plan, keys, self._address, self._settings.port_range, self._runtime if self._local else None)
        replica = RunningReplica(
            command,
            worker=self.name,
            home=self._home,
            fetch=fetcher(self._hub, self._settings, command),
            build=self._build,
            guard=self._guard,
            on_change=self._changed,
            command=self._command,
            shared=shared,
            secret=keys.secret if keys is not None else "",
        )
        self._running[plan.replica_id] = replica
        task = asyncio.ensure_future(self._live(replica))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return replica

    async def _stop(self, command: m.StopReplica) -> m.Done:
        replica = self._running.get(command.replica_id)
        if replica is not None and command.incarnation in ("", replica.plan.incarnation):
            replica.stop(command.grace)
        else:  # the supervisor thinks that it lives
            gone = m.ReplicaGone(replica_id=command.replica_id, uid="", incarnation=command.incarnation, rank=command.rank)
            self._link.notify(gone, introduced=False)
        return m.Done()

    # ---- replicas -------------------------------------------------------------------------------

    async def _live(self, replica: RunningReplica) -> None:
        plan = replica.plan
        await replica.run()
        del self._running[plan.replica_id]
        if (block := self._blocks.pop(plan.incarnation, None)) is not None:
            block.release()
        if replica.error:
            log.warning("%s", replica.error)
        looked = self._watch.look() if real(plan.devices) else None
        if looked is not None and replica.error is None:  # the next is placed by what was told last; a crash is told at once
            await asyncio.wait({looked}, timeout=LOOK)
        gone = m.ReplicaGone(
            replica_id=plan.replica_id,
            uid=plan.uid,
            error=replica.error,
            code=replica.code,
            incarnation=plan.incarnation,
            final=replica.final,
            rank=rank_of(replica.record),
        )
        if not self._link.notify(gone) and replica.error:
            status = msgspec.structs.replace(replica.record.status, state="FAILED", error=replica.error)
            self._unreported.append(msgspec.structs.replace(replica.record, status=status))

    def _changed(self, replica: RunningReplica) -> None:
        self._link.notify(m.ReplicaUpdate(replica.record))

    def _build(self, start: m.StartReplica, progress: Progress) -> Path | None:
        """In a thread: the interpreter of the replica's own environment, where it is to have one."""
        spec = start.spec
        check_remote_code(spec, self._settings.allow_remote_code)
        if not has_environment(spec):
            return None
        check_environment(spec, self._settings.allow_virtual_env)
        engine = self._hub.engines.get(start.plan.engine.name)
        packages = joined(needed(engine.requirements), start.model.packages, spec.virtual_env_packages)
        overlay = [path.partition(":")[0].partition(".")[0] for path in (start.plan.engine.path, *start.plan.parsers.values())]
        return self._environments.build(packages, spec.virtual_env_find_links, overlay, progress)

    async def _list_environments(self, command: m.ListEnvironments) -> m.FoundEnvironments:
        found, here = await in_thread(self._environments.found), self.name
        told = [EnvironmentStatus(worker=here, name=one.name, packages=one.packages, used=one.used, size=one.size) for one in found]
        return m.FoundEnvironments(told)

    async def _remove_environment(self, command: m.RemoveEnvironment) -> m.Done:
        users = [r.plan.replica_id for r in self._running.values() if r.python is not None and command.name in r.python.parts]
        if users:
            raise Conflict(f"environment {command.name} is used by {', '.join(users)}; terminate what uses it first", param="name")
        await in_thread(lambda: self._environments.remove(command.name))
        return m.Done()

    async def _stop_all(self) -> None:
        self._stopping = True
        self._watch.close()
        with contextlib.suppress(XiError):  # it will notice
            await self._link.call(m.Leaving(self.name), timeout=LEAVE_TIMEOUT)
        for replica in self._running.values():
            replica.stop(self._settings.grace)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.grace + STOP_MARGIN)


async def run(arguments: argparse.Namespace) -> None:
    """Be a worker until told to stop: beside its supervisor (`--runtime`), or as a member of a cluster."""
    config = settings()
    set_up_logging("worker", config.log_level)
    token = token_of(os.environ)
    stop = stop_event(arguments.watch_stdin)
    hub = PluginHub.load(config.plugins)
    name, supervisor = joining.check_name(arguments.name), arguments.supervisor
    address, security, identity = "127.0.0.1", None, None
    if not arguments.runtime:
        if arguments.host:  # before it joins: a token is good for once, and what is placed on such a worker can't start
            addresses.check_own(arguments.host)
        identity = Identity(config.home_dir, "worker", name)
        entering = enter(identity, by_scheme(hub.transports, "tcp://x:0"), supervisor, token, config.api_key)
        found = await unless(stop, entering)
        if found is None:
            return
        supervisor, security = found.endpoint, found.security
        address = addresses.of_member(arguments.host, supervisor)
    worker = Worker(hub, config, name=name, runtime=Path(arguments.runtime), supervisor=supervisor, address=address, security=security)
    serving = asyncio.ensure_future(worker.serve(stop, partial(announce_stop, "worker") if arguments.watch_stdin else None))
    ready = asyncio.ensure_future(worker.registered.wait())
    await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
    if ready.done() and arguments.watch_stdin:
        announce("worker", name)
    elif ready.done():
        sys.stderr.write(f"worker {name} has joined the cluster at {supervisor}; Ctrl-C ends it with its replicas\n")
    ready.cancel()
    await serving
    if identity is not None:
        identity.close()


def main() -> int:
    """The process's entry. Answers its exit status."""
    parser = argparse.ArgumentParser(prog="python -m xi_core.cluster.worker", description="The worker of one machine.")
    parser.add_argument("--supervisor", required=True, help="endpoint of the supervisor, or URL of a gateway of its cluster")
    parser.add_argument("--runtime", default="", help="directory for sockets: the supervisor is on this machine and needs no keys")
    parser.add_argument("--host", default="", help="this machine's address for gateways; default: that by which it reaches them")
    parser.add_argument("--name", default=socket.gethostname(), help="this worker's name; default: the machine's")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when stdin ends")
    arguments = parser.parse_args()
    return exit_status(run(arguments))


if __name__ == "__main__":
    sys.exit(main())
