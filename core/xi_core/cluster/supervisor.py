"""Supervisor: the one control process. `python -m xi_core.cluster.supervisor`: accepts workers and gateways, launches, publishes the table.

It carries out what the pure `lifecycle` decides. It is never on the token path: when it dies, replicas go on serving and the next
supervisor learns of them from their workers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import secrets
import sys
import time
from functools import partial

from xi_core.access import is_loopback
from xi_core.api.control import ProcessInfo
from xi_core.cluster import messages as m
from xi_core.cluster.admission import Admission
from xi_core.cluster.allow_list import AllowList
from xi_core.cluster.control_process import allow_many_files, announce, announce_stop, exit_status, first_of, set_up_logging, stop_event
from xi_core.cluster.desired import Desired
from xi_core.cluster.executor import Executor
from xi_core.cluster.launching import Launching
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.matching import WorkerLink
from xi_core.cluster.members import Member
from xi_core.cluster.operations import Operations
from xi_core.cluster.registrations import Registrations
from xi_core.cluster.schedulers import schedulers_of
from xi_core.cluster.store import Entry, Store
from xi_core.cluster.table import RoutingTable
from xi_core.config import CLUSTER_PORT, Settings, settings
from xi_core.errors import ChannelClosed, Conflict, ProtocolMismatch, Unavailable, XiError
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls, Link, LinkServer
from xi_core.transport.schemes import by_scheme, scheme_of
from xi_core.transport.vocabulary import Vocabulary
from xi_core.wire import PROTOCOL

log = logging.getLogger(__name__)

VOCABULARY = Vocabulary(m.ANSWERS, m.NOTICES)
SETTLE = 3.0
"""Seconds in which workers notice that the last supervisor is gone, and dial this one."""
COLLECT = (700, 10, 100)
"""Thresholds of garbage collection: a whole one takes 40 ms where thousands of replicas run, and finds next to nothing."""
INVITATION_TTL = 3600.0
"""Seconds for which the token that is shown at the start is good."""


class Supervisor:
    """The control plane: links, what each of them may ask, and the lifecycle."""

    def __init__(
        self,
        hub: PluginHub,
        config: Settings,
        endpoint: str,
        settle: float = SETTLE,
        *,
        store: Store | None = None,
        cluster: tuple[str, int] | None = None,
        restore: bool = True,
        exposed: bool = False,
    ) -> None:
        """Listens at `endpoint`, and with `cluster`, a host and a port, there for other machines, whom `store` knows.

        What `store` remembers to be wanted is launched again, with `restore`. For `settle` seconds nothing is placed: workers may
        report it yet. `exposed`: other machines reach the gateway. Raises `TransportError`, `ConfigError`.
        """
        epoch = f"{store.next_epoch():04x}{secrets.token_hex(2)}" if store is not None else secrets.token_hex(4)
        self._hub = hub
        schedulers = schedulers_of(hub)
        desired = Desired(store) if store is not None else None
        default = schedulers[hub.schedulers.get(config.launch_strategy, param="XI_LAUNCH_STRATEGY").name]
        for plugin in hub.records:
            if plugin.state == "quarantined":
                log.warning("xi runs without the plugin %s: %s; `xi plugins -v` says more", plugin.name, plugin.error)
        settled_at = time.monotonic() + settle
        self._lifecycle = Lifecycle(
            default,
            epoch,
            launch_timeout=config.launch_timeout,
            grace=config.grace,
            settled_at=settled_at,
            schedulers=schedulers,
            drains=desired.drains if desired is not None else None,
            ended=desired.ended if desired is not None else frozenset(),
            expected=store.entries("worker") if store is not None and cluster is not None else (),
        )
        scheme = "tcp" if cluster is not None else scheme_of(endpoint)
        replica_transport = next((t.transport for t in hub.transports if scheme in t.schemes), "")
        self._executor = Executor(hub, config, self._lifecycle, RoutingTable(epoch), replica_transport, settled_at)
        self._executor.resolver.exposed = exposed or (cluster is not None and not is_loopback(cluster[0]))
        self.stop_asked = asyncio.Event()
        """Set when somebody has asked to stop the cluster."""
        self._registrations = Registrations(hub, config)
        self._operations = Operations(hub, self._executor, self._lifecycle, self.stop_asked.set)
        self._allow_list = AllowList(self._executor, self._lifecycle)
        self._launching = Launching(hub, self._executor, self._lifecycle, config.grace)
        if desired is not None:
            self._restore(desired, restore)
        self.admission: Admission | None = None
        """The ports for other machines; None where there are none."""
        with contextlib.ExitStack() as undo:
            if store is not None and cluster is not None:
                self.admission = self._allow_list.admission = self._admit(store, *cluster)
                undo.callback(self.admission.abort)
                self._executor.gateways_key = self.admission.gateway_keys.public
            self._server = LinkServer(by_scheme(hub.transports, endpoint), endpoint, VOCABULARY, self._accept, self._closed)
            undo.pop_all()

    def _admit(self, store: Store, host: str, port: int) -> Admission:
        return Admission(
            store,
            by_scheme(self._hub.transports, "tcp://x:0"),
            host=host,
            port=port,
            vocabulary=VOCABULARY,
            accept=self._accept,
            closed=self._closed,
            connected=self._connected,
        )

    @property
    def endpoint(self) -> str:
        """Where workers and gateways dial."""
        return self._server.endpoint

    async def close(self) -> None:
        """Stop listening. What runs, runs on."""
        self._executor.close()
        await self._launching.close()
        await self._executor.kept()
        await self._server.close()
        if self.admission is not None:
            await self.admission.close()

    def _restore(self, desired: Desired, restore: bool) -> None:
        """Take up what was wanted before, or forget it. A launch without its engine or scheduler is forgotten, and told of."""
        if not restore:
            desired.forget_all()
        for wanted in desired.restore():
            if wanted.engine not in self._hub.engines or wanted.spec.scheduler not in (None, *self._hub.schedulers.names()):
                log.error("launch %s can't be restored: its engine %s or its scheduler is no longer installed", wanted.uid, wanted.engine)
                continue
            log.info("launch %s is wanted since before: %s on %s", wanted.uid, wanted.model.describe(), wanted.engine)
            self._lifecycle.restore(time.monotonic(), wanted)
        self._executor.desired = desired
        self._executor.do([])  # what is wanted is looked at though no worker may come, and nobody ask

    # ---- links ----------------------------------------------------------------------------------

    def _connected(self, entry: Entry) -> bool:
        if entry.role == "worker":
            return entry.name in self._executor.workers
        return any(gateway.name == entry.name for gateway in self._executor.gateways.values())

    def _require_name(self, link: Link, name: str) -> None:
        if self.admission is not None:
            self.admission.require_name(link, name)

    def _accept(self, link: Link) -> Calls:
        return {
            m.Register: partial(self._register, link),
            m.WorkerBeat: partial(self._worker_beat, link),
            m.ReplicaUpdate: partial(self._replica_update, link),
            m.ReplicaGone: self._replica_gone,
            m.Leaving: partial(self._leaving, link),
            m.Subscribe: partial(self._subscribe, link),
            m.ListEngines: self._list_engines,
            m.GetCluster: self._get_cluster,
            **self._launching.calls(),
            **self._operations.calls(),
            **self._allow_list.calls(),
            **self._registrations.calls(),
        }

    def _closed(self, link: Link) -> None:
        self._executor.gateways.pop(link, None)
        for name, worker in list(self._executor.workers.items()):
            if worker.link is link:
                member = self._lifecycle.members.get(name)
                if member is not None and member.leaving:
                    log.info("worker %s has left", name)
                else:
                    log.warning("worker %s is away", name)
                del self._executor.workers[name]
                self._executor.do(self._lifecycle.worker_left(time.monotonic(), name))

    async def _register(self, link: Link, command: m.Register) -> m.Registered:
        if link.closed.is_set():
            raise ChannelClosed(f"worker {command.worker} has hung up")
        self._require_name(link, command.worker)
        if command.protocol != PROTOCOL:
            raise ProtocolMismatch(f"worker {command.worker} speaks protocol {command.protocol}, this supervisor {PROTOCOL}")
        before = self._executor.workers.get(command.worker)
        if before is not None and before.register.incarnation != command.incarnation and _lives(before):
            raise Conflict(f"another worker is named {command.worker} and is connected; give this one a name of its own with --name")
        self._executor.workers[command.worker] = WorkerLink(command, link)
        engines = tuple(name for name, support in command.engines.items() if support.ok)
        member = Member(
            command.worker,
            command.incarnation,
            command.devices,
            engines,
            present=not command.leaving,
            leaving=command.leaving,
            address=command.address,
            memory=command.memory,
        )
        self._executor.do(self._lifecycle.worker_joined(time.monotonic(), member, command.replicas))
        if before is None:
            devices = ", ".join(device.id for device in command.devices) or "no devices but CPU"
            log.info("worker %s joined; %s; %d replicas run there", command.worker, devices, len(command.replicas))
        differences = self._operations.differences(command)
        if before is None and differences:
            log.warning("worker %s: %s", command.worker, "; ".join(differences))
        return m.Registered(differences)

    async def _replica_update(self, link: Link, notice: m.ReplicaUpdate) -> None:
        worker = next((name for name, w in self._executor.workers.items() if w.link is link), None)
        if worker is not None:
            self._executor.do(self._lifecycle.replica_updated(time.monotonic(), worker, notice.record))

    async def _replica_gone(self, notice: m.ReplicaGone) -> None:
        now = time.monotonic()
        self._executor.do(self._lifecycle.replica_gone(now, notice.incarnation, notice.error, notice.final, notice.code, notice.rank))

    async def _worker_beat(self, link: Link, notice: m.WorkerBeat) -> None:
        self._require_name(link, notice.worker)
        self._executor.do(self._lifecycle.worker_beat(time.monotonic(), notice.worker, notice.devices))

    async def _leaving(self, link: Link, command: m.Leaving) -> m.Done:
        self._require_name(link, command.worker)
        self._executor.do(self._lifecycle.worker_leaving(command.worker))
        return m.Done()

    async def _subscribe(self, link: Link, command: m.Subscribe) -> m.Subscribed:
        self._require_name(link, command.gateway)
        # The answer goes first: its keys are needed to dial what the table names.
        asyncio.get_running_loop().call_soon(self._follow, link, ProcessInfo(role="gateway", pid=command.pid, name=command.gateway))
        admission = self.admission
        return m.Subscribed() if admission is None else m.Subscribed(admission.gateway_keys, admission.older_keys)

    def _follow(self, link: Link, gateway: ProcessInfo) -> None:
        """Send the table now, and from now on each change."""
        try:
            link.notify(self._executor.table.snapshot())
        except XiError as error:
            log.warning("gateway %s doesn't take the routing table: %s", gateway.name, error)
            link.lose(error)  # it begins anew
        else:
            self._executor.gateways[link] = gateway

    # ---- looking ---------------------------------------------------------------------------------

    async def _list_engines(self, command: m.ListEngines) -> m.Engines:
        return m.Engines(await self._executor.resolver.matching.report(command.model, command.model_type))

    async def _get_cluster(self, command: m.GetCluster) -> m.Cluster:
        processes = [ProcessInfo(role="supervisor", pid=os.getpid()), *self._executor.gateways.values()]
        for name, worker in self._executor.workers.items():
            processes.append(ProcessInfo(role="worker", pid=worker.register.pid, name=name))
            processes.append(ProcessInfo(role="keeper", pid=worker.register.keeper_pid, name=name))
        for launch in self._lifecycle.listed():
            processes += [ProcessInfo(role="replica", pid=k.pid, name=r.replica_id) for r in launch.replicas for k in r.ranks if k.pid]
        return m.Cluster(processes, self.admission.endpoint if self.admission is not None else "")


def _lives(worker: WorkerLink) -> bool:
    """Whether a worker that is linked may still live. One of this machine is looked at; another is believed until its link is lost."""
    if worker.link.peer_key:
        return not worker.link.closed.is_set()
    pid = worker.register.pid
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError):
        return False
    return True


async def run(arguments: argparse.Namespace) -> None:
    """Be the supervisor until told to stop."""
    config = settings()
    set_up_logging("supervisor", config.log_level)
    stop = stop_event(arguments.watch_stdin)
    cluster = (arguments.cluster_host, arguments.cluster_port) if arguments.cluster_host else None
    store = _store(config, required=cluster is not None)
    settle = 0.0 if cluster is not None and store is not None and not store.entries("worker") else arguments.settle  # nobody can report
    hub = PluginHub.load(config.plugins)
    given = {"restore": not arguments.no_restore, "exposed": arguments.exposed}
    supervisor = Supervisor(hub, config, arguments.endpoint, settle, store=store, cluster=cluster, **given)
    announce("supervisor", supervisor.endpoint, **_invitation(supervisor.admission, arguments.invite))
    await first_of(stop, supervisor.stop_asked)
    if supervisor.stop_asked.is_set() and arguments.watch_stdin:
        announce_stop("supervisor")
        await stop.wait()  # the launcher ends its children in order
    await supervisor.close()
    if store is not None:
        store.close()


def _store(config: Settings, required: bool) -> Store | None:
    """The supervisor's memory. A second `xi serve` of the same XI_HOME goes without; a cluster can't.

    Raises `Unavailable`, `Conflict`: no setting is wrong, and the next start may find it.
    """
    try:
        return Store(config.home_dir)
    except (Conflict, Unavailable) as error:
        if required:
            raise
        log.warning("what is launched won't be remembered over a restart: %s", error.message)
        return None


def _invitation(admission: Admission | None, invite: bool) -> dict[str, str]:
    """What the launcher tells its user of how to join."""
    if admission is None:
        return {}
    found = {"cluster_endpoint": admission.endpoint}
    if invite:
        token = admission.new_token("worker", INVITATION_TTL)
        found |= {"join_token": token, "join_command": admission.command(token, "worker")}
    return found


def main() -> int:
    """The process's entry. Answers its exit status."""
    parser = argparse.ArgumentParser(prog="python -m xi_core.cluster.supervisor", description="The control process of a cluster.")
    parser.add_argument("--endpoint", required=True, help="where to listen: ipc://PATH or tcp://HOST:PORT")
    parser.add_argument(
        "--settle", type=float, default=SETTLE, help="seconds in which workers may report what runs before anything is placed"
    )
    parser.add_argument("--cluster-host", default="", help="listen at this address for workers and gateways of other machines")
    parser.add_argument("--cluster-port", type=int, default=CLUSTER_PORT, help="the port for them; the next one is where they join")
    parser.add_argument("--exposed", action="store_true", help="other machines reach the gateway")
    parser.add_argument("--invite", action="store_true", help="make a join token and tell it")
    parser.add_argument("--no-restore", action="store_true", help="forget what was launched before")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when stdin ends")
    arguments = parser.parse_args()
    gc.set_threshold(*COLLECT)
    allow_many_files()
    return exit_status(run(arguments))


if __name__ == "__main__":
    sys.exit(main())
