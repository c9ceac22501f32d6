"""A simulated replica process, or one rank of it: it prepares, loads, serves, and ends as its fate is. As `xi_core.cluster.running`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

import msgspec

from xi_core.api.control import LaunchState, ReplicaStatus
from xi_core.cluster.messages import ReplicaRecord, StartReplica
from xi_core.cluster.replicas import rank_of
from xi_core.wire.manifest import of_fields

Fate = Literal["serves", "dies loading", "can't load", "hangs loading", "dies", "hangs", "downloads for long", "stalls"]
HANG_TIMEOUT = 3.0
LONG = 30.0
"""Seconds of a long download: more than a launch may take otherwise."""
PIECE = 1.0
"""Seconds between two words of it."""
MANIFEST = of_fields(chat={})

Later = Callable[..., None]
"""`later(delay, do, *what)`: on the clock of the worker, which may stand still or die before."""


@dataclass(frozen=True)
class Ended:
    """How a process ended. No `error`: it was told to."""

    error: str | None = None
    final: bool = False


class Process:
    """One rank of one life of a replica on one worker."""

    def __init__(
        self,
        start: StartReplica,
        worker: str,
        fate: Fate,
        lingers: float,
        random: Random,
        later: Later,
        *,
        shared: bool,
        told: Callable[[Process], None],
        spawned: Callable[[Process], None],
        ended: Callable[[Process], None],
    ) -> None:
        """`lingers`: seconds that it takes to die. `shared`: it waits for the other ranks (`begin`) once it is prepared.

        `told` is called at each change, `spawned` when it takes its devices, `ended` at the end.
        """
        plan = start.plan
        self.life, self.replica_id, self.rank = plan.incarnation, plan.replica_id, 0
        self.devices, self.exclusive = tuple(plan.devices), plan.exclusive
        status = ReplicaStatus(replica_id=plan.replica_id, state="PREPARING", stage="preparing", worker=worker, devices=plan.devices, pid=1)
        self.record = ReplicaRecord(plan=plan, spec=start.spec, status=status, created=start.created, model=start.model)
        self.rank = rank_of(self.record)
        self.worker, self.fate, self._lingers = worker, fate, lingers
        self.end: Ended | None = None
        self.waits = shared
        self.stopping = self.spawned = False
        self.prepared: Callable[[], None] | None = None
        """Of one rank of several: called once it is prepared."""
        self.not_prepared: Callable[[], None] | None = None
        """Called where it ends before."""
        self._random, self._later, self._told, self._spawned, self._ended = random, later, told, spawned, ended
        self._ends_at = float("inf")
        self._deadline, self._downloads = start.deadline, fate in ("downloads for long", "stalls")
        later(random.uniform(0.02, 0.5), self._fetch, 0.0)

    @property
    def state(self) -> LaunchState:
        """How far it is."""
        return self.record.status.state

    def need(self, memory: int) -> int:
        """Bytes that it was promised of a device of so many."""
        return max(self.record.plan.memory, round(self.record.plan.memory_share * memory))

    def copy(self) -> ReplicaRecord:
        """Its record as it is sent."""
        return msgspec.structs.replace(self.record, status=msgspec.structs.replace(self.record.status))

    def begin(self, start: StartReplica) -> None:
        """All ranks are prepared."""
        self.waits, self.record.plan = False, start.plan
        self._start()

    def stop(self, grace: float, now: float) -> None:
        """End it: at once, or after its grace. A second time may shorten it."""
        serving = self.state in ("READY", "STOPPING")
        self.stopping = True
        takes = self._random.uniform(0, grace) if serving else 0.0
        takes += self._lingers
        if now + takes < self._ends_at:
            self._ends_at = now + takes
            self._later(takes, self.finish, Ended())
        if self.state == "READY":
            self._tell("STOPPING")

    def finish(self, how: Ended) -> None:
        """Nothing is left of it."""
        if self.end is None:
            self.end = Ended() if self.stopping else how
            self._ended(self)

    def calm(self) -> None:
        """Nothing fails from now on: what was to fail later does so now."""
        if self.fate not in ("serves", "downloads for long") and (self.state in ("LOADING", "READY") or self._downloads):
            self.finish(Ended("it fell over"))
        self.fate, self._downloads = "serves", False

    def _fetch(self, done: float) -> None:
        """The artifact comes, and this tells how much of it is there; or it comes no further."""
        if self.end is not None or self.stopping:
            return
        if not self._downloads or done >= LONG:
            self._downloads = False
            self._has_artifact()
        elif self.fate != "stalls" or done < LONG / 5:
            self.record.status.progress = done / LONG
            self._tell("PREPARING")
            self._later(PIECE, self._fetch, done + PIECE)

    def _has_artifact(self) -> None:
        if self.end is not None or self.stopping:
            return
        if self.fate == "can't load" and self._random.random() < 0.5:
            self.finish(Ended("the artifact is damaged", final=True))
        elif self.waits:
            self.record.status.progress = None
            self._tell("PREPARING")
            if self.prepared is not None:
                self.prepared()
        else:
            self._start()

    def _start(self) -> None:
        if self.end is not None or self.stopping:
            return
        self.spawned, self.record.status.progress = True, None
        self._spawned(self)
        self._tell("STARTING")
        self._later(self._deadline, self._late)
        self._later(self._random.uniform(0.05, 0.5), self._load)

    def _load(self) -> None:
        if self.end is not None or self.stopping:
            return
        self._tell("LOADING")
        takes = self._random.uniform(0.1, 1.5)
        if self.fate in ("serves", "dies", "hangs", "downloads for long", "stalls"):
            self._later(takes, self._serve)
        elif self.fate != "hangs loading":
            self._later(takes, self.finish, Ended("it fell over while it loaded", final=self.fate == "can't load"))

    def _serve(self) -> None:
        if self.end is not None or self.stopping:
            return
        self.record.endpoint, self.record.context_length, self.record.slots = f"sim://{self.life}", 64, 2
        self.record.manifest = MANIFEST
        self._tell("READY")
        if self.fate in ("dies", "hangs"):
            after = self._random.uniform(0, 12) + (HANG_TIMEOUT if self.fate == "hangs" else 0.0)
            self._later(after, self.finish, Ended("it died" if self.fate == "dies" else "it made no progress and was killed"))

    def _late(self) -> None:
        if self.state != "READY" and not self.stopping:
            self.finish(Ended("it was not ready within its time"))

    def _tell(self, state: LaunchState) -> None:
        status = self.record.status
        status.state, status.stage = state, state.lower()
        self._told(self)
