"""What operators ask of a supervisor beside launching: dry runs, scaling, draining, workers, logs, stopping. Part of the supervisor."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from xi_core import __version__
from xi_core.api.control import DeviceStatus, LogPart, WorkerStatus
from xi_core.cluster import messages as m
from xi_core.cluster.executor import Executor
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member, report
from xi_core.cluster.pulling import Pulling
from xi_core.cluster.replicas import Replica
from xi_core.cluster.sleeping import LaunchSleep
from xi_core.cluster.worker_disks import WorkerDisks
from xi_core.errors import InvalidRequest, ModelNotFound, Unavailable, XiError
from xi_core.models.catalog import normalised
from xi_core.natural import natural
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls, Link

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 5.0
"""Longest wait for one that is told to stop to say that it heard."""


class Operations:
    """Answers commands of the control API that change or show the cluster as a whole."""

    def __init__(self, hub: PluginHub, executor: Executor, lifecycle: Lifecycle, stop: Callable[[], None]) -> None:
        """`stop` ends this supervisor and what was started with it."""
        self._hub, self._executor, self._lifecycle, self._stop = hub, executor, lifecycle, stop

    def calls(self) -> Calls:
        """What it answers."""
        return {
            m.Explain: self._explain,
            m.Scale: self._scale,
            m.Drain: self._drain,
            m.ListWorkers: self._list_workers,
            m.ReadLog: self._read_log,
            **WorkerDisks(self._hub, self._executor).calls(),
            **Pulling(self._hub, self._executor).calls(),
            m.StopCluster: self._stop_cluster,
            **LaunchSleep(self._executor, self._lifecycle).calls(),
        }

    async def _explain(self, command: m.Explain) -> m.Explained:
        wanted = await self._executor.resolver.resolve(normalised(command.spec))
        return m.Explained([report(decision) for decision in self._lifecycle.explain(wanted)])

    async def _scale(self, command: m.Scale) -> m.Done:
        await self._executor.settled()
        self._executor.do(self._lifecycle.scale(time.monotonic(), command.uid, command.replica))
        await self._executor.kept()
        log.info("launch %s: %d replica(s) from now on", command.uid, command.replica)
        return m.Done()

    async def _drain(self, command: m.Drain) -> m.Done:
        now = time.monotonic()
        if command.undo:
            self._executor.do(self._lifecycle.undrain(now, command.worker))
        else:
            self._executor.do(self._lifecycle.drain(now, command.worker, command.seconds))
        await self._executor.kept()
        log.info("worker %s %s", command.worker, "takes replicas again" if command.undo else "is drained")
        return m.Done()

    async def _list_workers(self, command: m.ListWorkers) -> m.Workers:
        absent = self._lifecycle.drains.keys() | self._lifecycle.expected
        known = {name: Member(name, "", [], present=False) for name in absent} | self._lifecycle.members
        return m.Workers([self._status(member) for _, member in sorted(known.items(), key=lambda one: natural(one[0]))])

    def _status(self, member: Member) -> WorkerStatus:
        link = self._executor.workers.get(member.name)
        register = link.register if link is not None else None
        ranks = self._lifecycle.on(member.name)
        view = self._lifecycle.view_of(member.name)
        seen = {device.device: device for device in view.devices} if view is not None else {}
        devices = [
            DeviceStatus(
                id=d.id,
                kind=d.kind,
                name=d.name,
                memory=d.memory,
                memory_free=max(0, seen[d.id].memory_free),
                utilisation=d.utilisation,
                replicas=seen[d.id].replicas,
            )
            for d in member.devices
        ]
        return WorkerStatus(
            name=member.name,
            address=member.address,
            state="away" if register is None else "draining" if member.leaving or member.name in self._lifecycle.drains else "ready",
            version=register.version if register is not None else "",
            plugins=register.plugins if register is not None else {},
            cpus=register.cpus if register is not None else 0,
            memory=register.memory if register is not None else 0,
            devices=devices,
            engines=list(member.engines),
            replicas=[replica.replica_id for replica, _ in ranks],
            differences=self.differences(register) if register is not None else [],
        )

    def differences(self, register: m.Register) -> list[str]:
        """In which a worker isn't like this supervisor."""
        found = [f"xi {register.version}, the supervisor has {__version__}"] if register.version != __version__ else []
        ours = {record.name: record.version for record in self._hub.records if record.state == "loaded"}
        for name in sorted(ours.keys() | register.plugins.keys()):
            here, there = ours.get(name), register.plugins.get(name)
            if here is None:
                found.append(f"has the plugin {name} {there}, which the supervisor lacks")
            elif there is None:
                found.append(f"lacks the plugin {name} {here}")
            elif here != there:
                found.append(f"has {there} of the plugin {name}, the supervisor has {here}")
        return found

    async def _read_log(self, command: m.ReadLog) -> LogPart:
        replica = self._replica(command)
        if command.rank >= max(1, len(replica.ranks)):
            raise InvalidRequest(f"rank: {replica.replica_id} has {max(1, len(replica.ranks))} rank(s), from 0", param="rank")
        name = replica.ranks[command.rank].worker if replica.ranks else replica.last_workers.get(command.rank, "")
        former = replica.former_workers.get(command.rank, name) if command.previous else name
        moved, name = former != name, former
        worker = self._executor.workers.get(name)
        if worker is None:
            raise Unavailable(f"{replica.replica_id} has no log to read now: {self._why_no_log(command.uid, replica, name)}")
        previous = command.previous and not moved  # where it ran before, nothing has followed
        fetch = m.FetchLog(replica_id=replica.replica_id, rank=command.rank, start=command.start, previous=previous)
        part: LogPart = await worker.link.call(fetch)
        return msgspec.structs.replace(part, previous=True) if moved else part

    def _why_no_log(self, uid: str, replica: Replica, worker: str) -> str:
        launch = self._lifecycle.known(uid)
        why = f"worker {worker} is away" if worker else "it never ran" if launch.end else "it does not run now"
        if launch.end == "FAILED":
            return f"{why}; the launch FAILED: {launch.error}"
        return f"{why}; {replica.stage}" if replica.stage and not worker else why

    def _replica(self, command: m.ReadLog) -> Replica:
        launch = self._lifecycle.find(command.uid)
        if launch is None:
            known = ", ".join(entry.uid for entry in self._lifecycle.listed()) or "none"
            raise ModelNotFound(f"no model '{command.uid}' is launched; launched: {known}", param="model_uid")
        wanted = f"{command.uid}-{command.replica}" if command.replica is not None else launch.replicas[0].replica_id
        found = next((replica for replica in launch.replicas if replica.replica_id == wanted), None)
        if found is None:
            known = ", ".join(replica.replica_id for replica in launch.replicas)
            raise InvalidRequest(f"replica: there is no {wanted}; replicas of {command.uid}: {known}", param="replica")
        return found

    async def _stop_cluster(self, command: m.StopCluster) -> m.Done:
        log.info("the cluster is being stopped")
        # A gateway without a key is the launcher's, which ends it with the supervisor. Gateways first: they take nothing new then.
        others = [(f"gateway {process.name}", link) for link, process in self._executor.gateways.items() if link.peer_key]
        others += [(f"worker {name}", worker.link) for name, worker in self._executor.workers.items()]
        await asyncio.gather(*(_shut_down(who, link) for who, link in others))
        self._stop()
        return m.Done()


async def _shut_down(who: str, link: Link) -> None:
    try:
        await link.call(m.Shutdown(), timeout=SHUTDOWN_TIMEOUT)
    except XiError as error:
        log.warning("%s could not be told to stop: %s", who, error)
