"""Clusters of the pure core with devices, and what tests tell them: for those of scaling, draining and placement."""

from __future__ import annotations

from typing import Any

from xi_core.api.control import LaunchSpec, ReplicaStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan
from xi_plugins.schedulers.idle_first import IdleFirst
from xi_plugins.schedulers.spread import Spread

GIB = 2**30


def wanted(n_gpu: int = 0, memory: int = 0, share: float = 0.0, exclusive: bool = False, uid: str = "m", **fields: Any) -> Wanted:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    spec = LaunchSpec(model_name="toy", model_uid=uid, n_gpu=n_gpu, **fields)
    return Wanted(
        uid=uid, spec=spec, model=model, engine="e", n_gpu=n_gpu, created=1, memory=memory, memory_share=share, exclusive=exclusive
    )


def member(name: str, devices: int = 0, memory: int = 80 * GIB) -> Member:
    found = [Device(id=f"cuda:{n}", kind="cuda", memory=memory, memory_free=memory) for n in range(devices)]
    return Member(name, "i1", found, ("e",), address=f"host-{name}")


def cluster(*members: Member) -> Lifecycle:
    core = Lifecycle(IdleFirst(), "e", launch_timeout=100.0, grace=5.0, schedulers={"spread": Spread()})
    for one in members:
        core.worker_joined(0.0, one, [])
    return core


def starts(actions: list[Action]) -> list[Start]:
    return [a for a in actions if isinstance(a, Start)]


def stops(actions: list[Action]) -> list[str]:
    return [a.replica_id for a in actions if isinstance(a, Stop)]


def record(life: Start, what: Wanted) -> ReplicaRecord:
    """What a worker tells of a life that is READY."""
    plan = LaunchPlan(
        uid=life.uid,
        replica_id=life.replica_id,
        incarnation=life.incarnation,
        engine=EngineRef(name="e", path="x:X"),
        artifact=Artifact(format="toy", path="/x"),
        endpoint="ipc:///x",
        devices=list(life.assignments[0].devices),
    )
    status = ReplicaStatus(replica_id=life.replica_id, state="READY", worker=life.assignments[0].worker, pid=7)
    return ReplicaRecord(plan=plan, spec=what.spec, status=status, created=1, model=what.model, manifest=of_fields(chat={}))


def ready(core: Lifecycle, *lives: Start, now: float = 0.0) -> list[Action]:
    actions: list[Action] = []
    for life in lives:
        found = core.find(life.uid)
        assert found is not None
        actions += core.replica_updated(now, life.assignments[0].worker, record(life, found.wanted))
    return actions


def devices(lives: list[Start]) -> list[str]:
    return [name for life in lives for a in life.assignments for name in a.devices]


def serving(core: Lifecycle) -> list[str]:
    found = core.find("m")
    return [r.replica_id for r in found.route().replicas] if found is not None else []
