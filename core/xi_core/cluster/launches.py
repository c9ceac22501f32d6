"""Launches as the supervisor's pure core keeps them: what is wanted, how far it is, and how it ended. See `lifecycle`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import Struct

from xi_core.api.control import LaunchSpec, LaunchState, ModelStatus, has_environment
from xi_core.cluster.messages import ModelRoute, ReplicaRecord
from xi_core.cluster.placement import Assignment, PlacementRequest
from xi_core.cluster.replicas import ORDER, Action, Replica, rank_of
from xi_core.errors import ModelNotFound
from xi_core.models.family import ModelSpec

End = Literal["", "FAILED", "CANCELLED", "STOPPED"]
"""How a launch ended; empty while it is wanted. STOPPED: terminated after it had been READY; it is no longer listed."""

MASK = "***"
"""What users see of the values of a launch's environment variables: they may be tokens."""


def differences(one: LaunchSpec, other: LaunchSpec) -> str:
    """The names of the fields in which two launch specs differ."""
    return ", ".join(name for name in LaunchSpec.__struct_fields__ if getattr(one, name) != getattr(other, name))


def named(names: str | None) -> tuple[str, ...] | None:
    """The workers of a list with commas, each by a name or an address; None where there is no list."""
    return tuple(name.strip() for name in names.split(",") if name.strip()) if names else None


class Share(Struct, frozen=True, gc=False):
    """What one replica takes of each of its workers, as in `Wanted`."""

    n_gpu: int
    memory: int = 0
    memory_share: float = 0.0


class Wanted(Struct, frozen=True, kw_only=True):
    """A launch spec, resolved: which model, which engine, how many devices for each replica. `created` is a Unix time."""

    uid: str
    spec: LaunchSpec
    model: ModelSpec
    engine: str
    n_gpu: int
    """Devices of each rank."""
    created: int
    memory: int = 0
    """Bytes that it takes of each device; 0 where nobody knows."""
    memory_share: float = 0.0
    """Part of each device's whole memory that the engine takes, whatever the model."""
    main_memory: int = 0
    """Bytes of weights that each worker holds in main memory, without devices; 0 where nobody knows."""
    exclusive: bool = False
    """It shares no device with another replica."""
    shares: list[Share] = []
    """With a `replica_config`: what each replica takes, instead of `n_gpu`, `memory` and `memory_share`."""
    was_ready: bool | None = None
    """Whether all of it has served at once. It is written down with what is wanted, for what runs doesn't tell it: where a worker is away
    when the supervisor starts again, a part is all that there is to see. None: nobody knows, of a launch that an older xi wrote down or
    that workers alone remember; one of which anything is adopted READY is believed to have been, rather than ended."""

    def of(self, number: int) -> Wanted:
        """This, with what its replica of this number takes."""
        configs = self.spec.replica_config or []
        if number < min(len(self.shares), len(configs)):
            share = self.shares[number]
            return msgspec.structs.replace(self, n_gpu=share.n_gpu, memory=share.memory, memory_share=share.memory_share)
        own = configs[number].n_gpu if number < len(configs) else None  # a worker has told of it, or an older xi has written it down
        return self if own is None else msgspec.structs.replace(self, n_gpu=own)

    def request(self, number: int, others: list[Replica], *, explain: bool = True) -> PlacementRequest:
        """What to ask a scheduler for its replica of this number, beside `others` of the launch."""
        spec, configs, takes = self.spec, self.spec.replica_config or [], self.of(number)
        own = configs[number] if number < len(configs) else None
        pool = own.gpu_idx if own is not None and own.gpu_idx is not None else spec.gpu_idx
        names = own.worker if own is not None and own.worker else spec.worker_ip
        return PlacementRequest(
            uid=self.uid,
            engine=self.engine,
            n_gpu=takes.n_gpu,
            gpu_idx=None if pool is None else tuple(pool),
            n_worker=spec.n_worker,
            workers=named(names),
            memory=takes.memory,
            memory_share=takes.memory_share,
            main_memory=self.main_memory,
            held=tuple(Assignment(r.worker, r.devices) for other in others if not other.displaced for r in other.ranks if not r.gone),
            gpu_pool=spec.gpu_pool,
            exclusive=self.exclusive,
            brings_engine=has_environment(spec),
            explain=explain,
        )


@dataclass
class LaunchEntry:
    """One launch: what is wanted, how far it is, and how it ended."""

    wanted: Wanted
    replicas: list[Replica]
    deadline: float | None
    """When it is FAILED if it isn't READY, or where a part of it serves, the rest is begun anew; None while it is READY."""
    end: End = ""
    ended_at: float = 0.0
    error: str | None = None
    error_code: str | None = None
    number: int = 0
    """Which launch of its supervisor it is."""

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
    def was_ready(self) -> bool:
        """Whether it has been READY, under this supervisor or a former one."""
        return bool(self.wanted.was_ready)

    @property
    def serves(self) -> bool:
        """Whether it has been READY and a replica of it still is. One whose worker is away may well serve on, and isn't given up either."""
        return self.was_ready and any(r.route is not None for r in self.replicas)

    @property
    def waits(self) -> bool:
        """Whether it has been READY, and only misses workers or room: nothing of it runs on a worker that is here, or is tried again after
        it ended by its own fault.

        So it is, for one, where the supervisor starts again before any worker comes. What is tried then has the whole time of a launch.
        """
        return self.was_ready and all(r.waits for r in self.replicas if not r.leaving)

    @property
    def stuck(self) -> bool:
        """Whether it has been READY, and nothing that is missing of it is likely to be there soon.

        It waits for a worker or for room, or has used up its restarts.
        """
        missing = [r for r in self.replicas if not r.leaving and r.told != "READY"]
        hopeless = all(r.spent or (r.away if r.live else r.start_at is None) for r in missing)
        return self.was_ready and not self.end and self.state != "READY" and hopeless

    @property
    def state(self) -> LaunchState:
        """Its state, as users see it."""
        if self.end in ("STOPPED", "CANCELLED") and (self.live or self.end == "STOPPED"):
            return "STOPPING"
        if self.end in ("FAILED", "CANCELLED"):
            return self.end
        states: list[LaunchState] = [r.told if r.told in ORDER else "PENDING" for r in self.replicas if r.wanted]
        return min(states, key=ORDER.index, default="PENDING")

    def open_until(self, deadline: float) -> None:
        """It isn't READY any more, or not yet: unless it has a deadline, this is it."""
        if self.deadline is None:
            self.deadline = deadline

    def takes(self, spec: LaunchSpec) -> bool:
        """Whether a replica that was started for `spec` may serve it: all but the number of replicas must be the same."""
        return msgspec.structs.replace(spec, replica=self.wanted.spec.replica) == self.wanted.spec

    def number_of(self, replica: Replica) -> int:
        """Which of the launch's replicas it is, or whose place it is to take."""
        return self.replicas.index(next((r for r in self.replicas if r.replica_id == replica.replaces), replica))

    def wanted_of(self, replica_id: str) -> Wanted:
        """What is wanted, with what this replica takes, which may have a configuration of its own."""
        replica = next((r for r in self.replicas if r.replica_id == replica_id), None) if self.wanted.spec.replica_config else None
        return self.wanted if replica is None else self.wanted.of(self.number_of(replica))

    def heir(self, replica: Replica) -> Replica | None:
        """What is to take the place of a replica."""
        return next((r for r in self.replicas if r.replaces == replica.replica_id), None)

    def succeed(self, heir: Replica) -> Replica:
        """Let a replica take the place that it is meant for, which may have a configuration of its own. Answers whose place it was."""
        here = self.replicas.index(heir)
        there = next(n for n, r in enumerate(self.replicas) if r.replica_id == heir.replaces)
        self.replicas[here], self.replicas[there] = self.replicas[there], heir
        heir.replaces = ""
        return self.replicas[here]

    def vacancy(self, replica_id: str) -> Replica | None:
        """The replica of this name; a new name where one has never begun a life: a former supervisor called it otherwise."""
        named = next((r for r in self.replicas if r.replica_id == replica_id), None)
        free = next((r for r in self.replicas if r.wanted and not r.live and not r.starts), None) if named is None else None
        if free is not None:
            free.replica_id = replica_id
        return named or free

    def avoid(self, replica_id: str) -> None:
        """A process of this name is on its way out: a replica that isn't live takes another name, for a worker runs one of each only."""
        for replica in self.replicas:
            if replica.replica_id == replica_id and not replica.live and not self.end:
                replica.replica_id = self.free_id()

    def free_ids(self, count: int) -> list[str]:
        """Names for so many more replicas."""
        taken = {replica.replica_id for replica in self.replicas}
        names = (f"{self.uid}-{number}" for number in range(len(taken) + count))
        return [name for name in names if name not in taken][:count]

    def free_id(self) -> str:
        """A name for one more replica."""
        return self.free_ids(1)[0]

    def take(self, replica: Replica, record: ReplicaRecord, deadline: float) -> None:
        """Take over what a worker reports of one of its replicas. If it isn't READY then, it has until `deadline` to be.

        A download that goes on has all the time that it needs.
        """
        replica.take(rank_of(record), record)
        if record.status.state == "PREPARING" and record.status.progress is not None and self.deadline is not None:
            self.deadline = deadline
        self.look(deadline)

    def look(self, deadline: float) -> None:
        """Something has changed: see whether it is READY; if not, it has until `deadline` to be."""
        if self.end:
            return
        if self.state == "READY":
            self.served()
            self.deadline = None
        else:
            self.open_until(deadline)

    def served(self) -> None:
        """It is, or was, READY: remember that."""
        if not self.was_ready:
            self.wanted = msgspec.structs.replace(self.wanted, was_ready=True)

    def stops(self, grace: float) -> list[Action]:
        """It is not wanted any more: what ends its live replicas, which serve no new requests from now on."""
        for replica in self.replicas:
            replica.state = "STOPPING" if replica.live else self.state
            replica.stage = replica.stage if replica.live else ""
        return [stop for replica in self.live for stop in replica.stops(grace)]

    def hindrance(self) -> str:
        """What its replicas that aren't READY are doing or waiting for."""
        late = [r for r in self.replicas if r.state != "READY" or r.lost_at is not None]
        return "; ".join(f"{r.replica_id}: {r.error or r.stage or r.state}" for r in late)

    def status(self) -> ModelStatus:
        """As the control API shows it.

        A replica whose worker is away counts as READY for two leases: until then it may be a link that was down for a moment, and nothing
        moves. Then, where it can't be moved, it is counted no more, though gateways that still reach it use it.
        """
        wanted = self.wanted
        known = [r.context_length for r in self.replicas if r.context_length]
        routed = [r for r in self.replicas if r.route is not None and not r.away] if not self.end else []
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
            ready_replicas=sum(not r.asleep for r in routed),
            asleep_replicas=sum(bool(r.asleep) for r in routed),
            stuck=self.stuck,
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
            detail="" if any(not r.away for r in ready) else _detail(self),
            replicas=[r.route for r in ready if r.route is not None],
            context_length=min((r.context_length for r in ready), default=None),
            endpoints=sorted(common),
            adapters=[] if self.end else sorted(self.wanted.spec.lora_modules),
        )


def _detail(launch: LaunchEntry) -> str:
    """Why it doesn't serve, for gateways."""
    if launch.error:
        return launch.error
    return next((r.error or r.stage for r in launch.replicas if r.error or r.stage), "")


class Launches(dict[str, LaunchEntry]):
    """All launches by uid, oldest first; also those that users can't see."""

    def find(self, uid: str) -> LaunchEntry | None:
        """The launch of this uid that users can see."""
        launch = self.get(uid)
        return launch if launch is not None and launch.listed else None

    def known(self, uid: str) -> LaunchEntry:
        """As `find`. Raises `ModelNotFound`."""
        launch = self.find(uid)
        if launch is None:
            known = ", ".join(entry.uid for entry in self.listed()) or "none"
            raise ModelNotFound(f"no model '{uid}' is launched; launched: {known}", param="model_uid")
        return launch

    def listed(self) -> list[LaunchEntry]:
        """All that users can see."""
        return [launch for launch in self.values() if launch.listed]
