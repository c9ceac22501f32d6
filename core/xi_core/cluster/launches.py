"""Launches and their replicas as the supervisor's pure core keeps them, and the actions that it asks for. See `lifecycle`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec
from msgspec import Struct

from xi_core.api.control import LaunchSpec, LaunchState, ModelStatus, ReplicaStatus
from xi_core.cluster.messages import ModelRoute, ReplicaRecord, ReplicaRoute
from xi_core.models.family import ModelSpec

End = Literal["", "FAILED", "CANCELLED", "STOPPED"]
"""How a launch ended; empty while it is wanted. STOPPED: terminated after it had been READY; it is no longer listed."""

ORDER: tuple[LaunchState, ...] = ("PENDING", "PREPARING", "STARTING", "LOADING", "READY")
"""States of a wanted launch, in the order in which they come: a launch is as far as its last replica."""


class Start(Struct, frozen=True):
    """Action: start this life of a replica on a worker, within so many seconds."""

    worker: str
    uid: str
    replica_id: str
    incarnation: str
    devices: tuple[str, ...]
    deadline: float


class Stop(Struct, frozen=True):
    """Action: end this life of a replica, after `grace` seconds at most."""

    worker: str
    replica_id: str
    incarnation: str
    grace: float


Action = Start | Stop

MASK = "***"
"""What users see of the values of a launch's environment variables: they may be tokens."""


def differences(one: LaunchSpec, other: LaunchSpec) -> str:
    """The names of the fields in which two launch specs differ."""
    return ", ".join(f.name for f in msgspec.structs.fields(LaunchSpec) if getattr(one, f.name) != getattr(other, f.name))


class Wanted(Struct, frozen=True, kw_only=True):
    """A launch spec, resolved: which model, which engine, how many devices for each replica. `created` is a Unix time."""

    uid: str
    spec: LaunchSpec
    model: ModelSpec
    engine: str
    n_gpu: int
    created: int


@dataclass
class Replica:
    """One replica of a launch. It is live from the moment its start was asked for until its worker says that it is gone."""

    replica_id: str
    incarnation: str = ""
    """Which life; empty when it has none."""
    worker: str = ""
    devices: tuple[str, ...] = ()
    state: LaunchState = "PENDING"
    stage: str = ""
    progress: float | None = None
    pid: int | None = None
    starts: int = 0
    error: str | None = None
    deaths: list[float] = field(default_factory=list)
    """Times of the deaths that nobody asked for, the last 60 s of them."""
    start_at: float | None = None
    """When to start it next, where it is not live; None: as soon as there is a place."""
    lost_at: float | None = None
    """Since when its worker has been away."""
    route: ReplicaRoute | None = None
    context_length: int = 0
    endpoints: tuple[str, ...] = ()

    @property
    def live(self) -> bool:
        """Whether a process of it may exist."""
        return bool(self.incarnation)

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self.starts - 1)

    def clear(self) -> None:
        """Forget the life that ended."""
        self.incarnation, self.worker, self.devices = "", "", ()
        self.state, self.stage, self.progress, self.pid = "PENDING", "", None, None
        self.lost_at, self.route, self.context_length, self.endpoints = None, None, 0, ()

    def take(self, record: ReplicaRecord) -> None:
        """Take over what its worker reports of its life."""
        status, plan = record.status, record.plan
        self.state, self.stage, self.progress, self.pid = status.state, status.stage, status.progress, status.pid
        self.lost_at = None
        if status.state != "READY" or record.manifest is None:
            self.route = None
            return
        self.error = None
        self.context_length, self.endpoints = record.context_length, tuple(sorted(record.manifest.endpoints))
        self.route = ReplicaRoute(
            replica_id=self.replica_id,
            incarnation=self.incarnation,
            endpoint=record.endpoint,
            transport=plan.transport,
            slots=record.slots,
        )

    def status(self) -> ReplicaStatus:
        """As the control API shows it."""
        return ReplicaStatus(
            replica_id=self.replica_id,
            state=self.state,
            stage=self.stage,
            progress=self.progress,
            worker=self.worker,
            devices=list(self.devices),
            pid=self.pid,
            restarts=self.restarts,
            error=self.error,
        )


@dataclass
class LaunchEntry:
    """One launch: what is wanted, how far it is, and how it ended."""

    wanted: Wanted
    replicas: list[Replica]
    deadline: float | None
    """When it is FAILED if it isn't READY; None while it is READY."""
    end: End = ""
    ended_at: float = 0.0
    error: str | None = None
    error_code: str | None = None
    was_ready: bool = False

    @property
    def uid(self) -> str:
        """Its name."""
        return self.wanted.uid

    @property
    def live(self) -> list[Replica]:
        """Its replicas of which a process may exist."""
        return [r for r in self.replicas if r.live]

    @property
    def listed(self) -> bool:
        """Whether users see it."""
        return self.end != "STOPPED" or bool(self.live)

    @property
    def state(self) -> LaunchState:
        """Its state, as users see it."""
        if self.end in ("STOPPED", "CANCELLED") and (self.live or self.end == "STOPPED"):
            return "STOPPING"
        if self.end in ("FAILED", "CANCELLED"):
            return self.end
        return min((r.state if r.state in ORDER else "PENDING" for r in self.replicas), key=ORDER.index)

    def open_until(self, deadline: float) -> None:
        """It isn't READY any more, or not yet: unless it has a deadline, this is it."""
        if self.deadline is None:
            self.deadline = deadline

    def take(self, replica: Replica, record: ReplicaRecord, deadline: float) -> None:
        """Take over what a worker reports of one of its replicas. If it isn't READY then, it has until `deadline` to be."""
        replica.take(record)
        if self.end:
            replica.route = None
        elif self.state == "READY":
            self.was_ready, self.deadline = True, None
        else:
            self.open_until(deadline)

    def stops(self, grace: float) -> list[Action]:
        """It is not wanted any more: what ends its live replicas, which serve no new requests from now on."""
        for replica in self.replicas:
            replica.state, replica.route = ("STOPPING" if replica.live else self.state), None
            replica.stage = replica.stage if replica.live else ""
        return [Stop(r.worker, r.replica_id, r.incarnation, grace) for r in self.live]

    def status(self) -> ModelStatus:
        """As the control API shows it."""
        wanted = self.wanted
        known = [r.context_length for r in self.replicas if r.context_length]
        return ModelStatus(
            model_uid=self.uid,
            spec=msgspec.structs.replace(wanted.spec, env=dict.fromkeys(wanted.spec.env, MASK)),
            state=self.state,
            created=wanted.created,
            engine=wanted.engine,
            model_format=wanted.model.format,
            size_in_billions=wanted.model.size_in_billions,
            quantization=wanted.model.quantization,
            context_length=min(known) if known else wanted.model.context_length,
            replicas=[r.status() for r in self.replicas],
            error=self.error,
            error_code=self.error_code,
        )

    def route(self) -> ModelRoute:
        """Its entry in the routing table."""
        ready = [r for r in self.replicas if r.route is not None] if not self.end else []
        common = set(ready[0].endpoints).intersection(*(r.endpoints for r in ready)) if ready else set()
        return ModelRoute(
            uid=self.uid,
            state=self.state,
            detail="" if ready else self._detail(),
            replicas=[r.route for r in ready if r.route is not None],
            context_length=min((r.context_length for r in ready), default=None),
            endpoints=sorted(common),
        )

    def _detail(self) -> str:
        if self.error:
            return self.error
        return next((r.error or r.stage for r in self.replicas if r.error or r.stage), "")
