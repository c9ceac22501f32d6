"""A simulated worker: the processes that it runs, and what happens to it. As `xi_core.cluster.worker`; its link is in `uplink`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Protocol

import msgspec

from xi_core.cluster import messages as m
from xi_core.cluster.devices import Device
from xi_core.errors import Conflict, LaunchFailed, Unavailable
from xi_core.testing.simulation.clock import Clock
from xi_core.testing.simulation.processes import Fate, Process
from xi_core.testing.simulation.uplink import WORKER, Uplink
from xi_core.testing.simulation.wire import Answer, Link, Path, Side
from xi_core.wire import PROTOCOL
from xi_core.wire.plan import RankAddress, Rendezvous

BEAT = 1.0
"""Seconds between looks at the devices."""


class Cluster(Protocol):
    """What a worker needs of its surroundings."""

    clock: Clock
    random: Random

    def trace(self, line: str) -> None:
        """Note what happens."""

    def listener(self) -> Side | None:
        """The supervisor that listens, if one does."""

    def fate(self) -> Fate:
        """What will become of a process that starts now."""

    def lingers(self) -> float:
        """Seconds that it takes to die, when it must."""

    def spawned(self, process: Process) -> None:
        """A process takes its devices."""


class SimWorker:
    """One machine, with its devices and the processes on it."""

    def __init__(self, cluster: Cluster, name: str, devices: list[Device], grace: float) -> None:
        self.name, self.path, self.devices = name, Path(), devices
        self.alive = self.stands_still = self.leaving = False
        self.running: dict[str, Process] = {}
        """By replica id, as a worker keeps them."""
        self.dying: list[Process] = []
        """Processes of a worker that is dead, which its keeper is about to kill."""
        self._uplink = Uplink(self, cluster.clock, cluster.random, cluster.listener, cluster.trace)
        self._cluster, self._clock, self._random, self._grace = cluster, cluster.clock, cluster.random, grace
        self._life = 0
        self._beat_of: list[Device] = []
        self._deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    @property
    def incarnation(self) -> str:
        """Which life of the worker."""
        return f"{self.name}.{self._life}"

    @property
    def registered(self) -> bool:
        """Whether the supervisor has taken it in."""
        return self._uplink.registered

    # ---- what happens to it ---------------------------------------------------------------------

    def boot(self) -> None:
        """The machine's worker starts."""
        if self.alive:
            return
        if self.dying:  # a worker takes longer to start than a keeper to kill
            self._clock.after(0.5, self.boot)
            return
        self._life += 1
        self.alive, self.stands_still, self.leaving = True, False, False
        self._cluster.trace(f"{self.name} boots as {self.incarnation}")
        self._uplink.begin()
        self.later(BEAT, self._beat)

    def crash(self) -> None:
        """It is killed, and its keeper kills what it ran."""
        if not self.alive:
            return
        self._cluster.trace(f"{self.name} crashes")
        self.alive = self.stands_still = False
        self.dying += self.running.values()
        self.running, self._deferred = {}, []
        self._clock.after(self._random.uniform(0.0, 0.5), self._keeper, list(self.dying))
        self._uplink.hang_up()

    def stop(self) -> None:
        """It is told to stop: it says so, ends what it runs, and ends."""
        if not self.alive or self.stands_still or self.leaving:
            return
        self._cluster.trace(f"{self.name} is told to stop")
        self.leaving = True
        self._uplink.notify(m.Leaving(self.name))
        for process in list(self.running.values()):
            process.stop(self._grace, self._clock.now)
        self.later(self._grace + 0.5, self.crash)

    def stand_still(self, still: bool) -> None:
        """It is suspended, or goes on."""
        if not self.alive or self.stands_still == still:
            return
        self._cluster.trace(f"{self.name} {'stands still' if still else 'goes on'}")
        self.stands_still = still
        if not still:
            deferred, self._deferred = self._deferred, []
            for do, what in deferred:
                self.later(self._random.uniform(0, 0.02), do, *what)
        self._uplink.changed()

    def cut(self, up: bool, down: bool) -> None:
        """Its network fails, wholly or in one direction, or heals."""
        if self.path.cut != [up, down]:
            self._cluster.trace(f"{self.name} is cut off: {self.path.cut} -> {[up, down]}")
            self.path.cut = [up, down]
            self._uplink.changed()

    def later(self, delay: float, do: Callable[..., None], *what: Any) -> None:
        """Do something in so many seconds, if this life lasts; while it stands still, not before it goes on."""
        self._clock.after(delay, self._due, self._life, do, what)

    def _due(self, life: int, do: Callable[..., None], what: tuple[Any, ...]) -> None:
        if not self.alive or life != self._life:
            return
        if self.stands_still:
            self._deferred.append((do, what))
        else:
            do(*what)

    def _keeper(self, killed: list[Process]) -> None:
        self.dying = [p for p in self.dying if p not in killed]

    # ---- what its link asks ---------------------------------------------------------------------

    def introduction(self, ended: list[m.ReplicaRecord]) -> m.Register:
        """What it registers with; `ended`: replicas of whose end the supervisor doesn't know."""
        self._beat_of = self.probed()
        return m.Register(
            worker=self.name, incarnation=self.incarnation, pid=1, keeper_pid=2, version="", protocol=PROTOCOL, devices=self._beat_of,
            engines={}, replicas=[*(p.copy() for p in self.running.values() if not p.waits), *ended], address=f"host-{self.name}",
        )  # fmt: skip

    def cut_off(self) -> None:
        """The supervisor is away: what waits for other ranks waits in vain."""
        for process in [p for p in self.running.values() if p.waits]:
            process.stop(0.0, self._clock.now)

    def probed(self) -> list[Device]:
        """Its devices as they are now."""
        return [msgspec.structs.replace(d, memory_free=d.memory - self._used(d)) for d in self.devices]

    def _used(self, device: Device) -> int:
        processes = [*self.running.values(), *self.dying]
        return sum(p.need(device.memory) for p in processes if device.id in p.devices and p.state in ("READY", "STOPPING"))

    def _beat(self) -> None:
        self.later(BEAT, self._beat)
        devices = self.probed()
        if devices != self._beat_of and self.registered and self._uplink.notify(m.WorkerBeat(worker=self.name, devices=devices)):
            self._beat_of = devices

    # ---- what the supervisor asks ---------------------------------------------------------------

    def obey(self, link: Link, number: int, command: Any) -> Any:
        """The answer to a command; None: it comes later. Raises `XiError`."""
        match command:
            case m.StartReplica() if command.plan.rendezvous is None:
                self._run(command, shared=False)
            case m.StartReplica():
                prepared = self.running.get(command.plan.replica_id)
                if prepared is None or prepared.life != command.plan.incarnation or not prepared.waits:
                    raise Conflict(f"{command.plan.replica_id} is not prepared on {self.name}")
                prepared.begin(command)
            case m.Prepare():
                self._prepare(link, number, command)
                return None
            case m.StopReplica():
                running = self.running.get(command.replica_id)
                if running is not None and running.life == command.incarnation:
                    running.stop(command.grace, self._clock.now)
                else:
                    self._uplink.notify(
                        m.ReplicaGone(replica_id=command.replica_id, uid="", incarnation=command.incarnation, rank=command.rank)
                    )
        return m.Done()

    def _prepare(self, link: Link, number: int, command: m.Prepare) -> None:
        own = RankAddress(rank=command.rank, worker=self.name, host=self.name, devices=tuple(command.plan.devices))
        plan = msgspec.structs.replace(command.plan, rendezvous=Rendezvous(rank=command.rank, world=()))
        start = m.StartReplica(spec=command.spec, model=command.model, plan=plan, created=1, deadline=command.deadline)
        process = self._run(start, shared=True)
        process.prepared = partial(self._say, link, Answer(number, m.Prepared(own)))
        process.not_prepared = partial(self._say, link, Answer(number, LaunchFailed(f"{plan.replica_id} could not be prepared")))

    @staticmethod
    def _say(link: Link, answer: Answer) -> None:
        link.send(WORKER, answer)

    def _run(self, command: m.StartReplica, *, shared: bool) -> Process:
        plan = command.plan
        if self.leaving:
            raise Unavailable(f"worker {self.name} is being stopped")
        if plan.replica_id in self.running:
            raise Conflict(f"replica {plan.replica_id} runs on worker {self.name} already")
        fate = self._cluster.fate()
        process = Process(
            command,
            self.name,
            fate,
            self._cluster.lingers(),
            self._random,
            self.later,
            shared=shared,
            told=self._changed,
            spawned=self._cluster.spawned,
            ended=self._ended,
        )
        self._cluster.trace(f"{self.name} runs {plan.incarnation} rank {process.rank} of {plan.replica_id}, which {fate}")
        self.running[plan.replica_id] = process
        return process

    def _changed(self, process: Process) -> None:
        self._uplink.notify(m.ReplicaUpdate(process.copy()))

    def _ended(self, process: Process) -> None:
        end = process.end
        if end is None or self.running.get(process.replica_id) is not process:
            return
        del self.running[process.replica_id]
        self._cluster.trace(f"{self.name}: {process.life} rank {process.rank} has ended: {end.error or 'as it was told'}")
        gone = m.ReplicaGone(
            replica_id=process.replica_id, uid="", error=end.error, incarnation=process.life, final=end.final, rank=process.rank
        )
        if not self._uplink.notify(gone) and end.error:
            record = process.copy()
            record.status.state, record.status.error = "FAILED", end.error
            self._uplink.report(record)
        if process.waits and process.not_prepared is not None:
            process.not_prepared()
