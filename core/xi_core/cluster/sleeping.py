"""Putting a launch to sleep: the supervisor's part, which asks the workers of its replicas, and a worker's, which asks its processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from xi_core.cluster import messages as m
from xi_core.cluster.executor import Executor
from xi_core.cluster.launches import LaunchEntry
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.replicas import Replica
from xi_core.errors import Conflict, Unavailable
from xi_core.transport.rpc import Calls
from xi_core.wire.plan import LaunchPlan
from xi_core.wire.sleep import check_sleep

log = logging.getLogger(__name__)


class LaunchSleep:
    """Answers `Sleep` for a supervisor. What sleeps is known from the replicas' workers, as all that runs is."""

    def __init__(self, executor: Executor, lifecycle: Lifecycle) -> None:
        self._executor, self._lifecycle = executor, lifecycle

    def calls(self) -> Calls:
        """What it answers."""
        return {m.Sleep: self._sleep}

    async def _sleep(self, command: m.Sleep) -> m.Done:
        launch = self._lifecycle.known(command.uid)
        serving = [replica for replica in launch.replicas if replica.route is not None] if not launch.end else []
        if not serving or (command.level and launch.state != "READY"):
            raise Conflict(f"model '{launch.uid}' is {launch.state}; it can sleep and wake once it is READY", param="model_uid")
        for replica in serving if command.level else ():
            _check(launch, replica, command.level)
        done = await asyncio.gather(*(self._ask(replica, command.level) for replica in serving), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        log.info("launch %s %s", launch.uid, f"sleeps at level {command.level}" if command.level else "is awake")
        return m.Done()

    async def _ask(self, replica: Replica, level: int) -> None:
        """The process that serves, which takes its other ranks along. However long it takes: the replica ends, or its worker goes."""
        worker = self._executor.workers.get(replica.worker)
        if worker is None:
            raise Unavailable(f"{replica.replica_id}: worker {replica.worker} is away", retry_after=1.0)
        order = m.SleepReplica(replica_id=replica.replica_id, incarnation=replica.incarnation, level=level)
        await worker.link.call(order, timeout=None)


def _check(launch: LaunchEntry, replica: Replica, level: int) -> None:
    """Raises `UnsupportedField`, and `Conflict` where it sleeps at another level."""
    if replica.head is not None:
        check_sleep(launch.uid, launch.wanted.engine, replica.head.sleep, level)
    if replica.asleep not in (0, level):
        raise Conflict(f"model '{launch.uid}' sleeps at level {replica.asleep} already; wake it first: xi wake {launch.uid}", param="level")


class _Running(Protocol):
    """A replica of a worker."""

    @property
    def plan(self) -> LaunchPlan: ...

    async def sleep(self, level: int) -> None: ...


class ReplicaSleep:
    """Answers `SleepReplica` for a worker with these replicas."""

    def __init__(self, running: Mapping[str, _Running]) -> None:
        self._running = running

    def calls(self) -> Calls:
        """What it answers."""
        return {m.SleepReplica: self._sleep}

    async def _sleep(self, command: m.SleepReplica) -> m.Done:
        replica = self._running.get(command.replica_id)
        if replica is None or replica.plan.incarnation != command.incarnation:
            raise Conflict(f"{command.replica_id} was started anew meanwhile")
        await replica.sleep(command.level)
        return m.Done()
