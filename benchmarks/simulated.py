"""Workers and replicas that exist in words only: what a real worker of the same size would tell the supervisor."""

from __future__ import annotations

from collections.abc import Sequence

from xi_core.api.control import LaunchSpec, ReplicaStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.messages import ReplicaRecord
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.testing.simulation.processes import MANIFEST
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan

WORKERS, DEVICES, LAUNCHES, REPLICAS = 1000, 8, 1000, 5
GIB = 2**30
MEMORY = 20 * GIB
"""What a replica takes on its device."""
ENGINE = "simulated"
MODEL = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))


def name_of(number: int) -> str:
    """The worker of this number."""
    return f"w{number:04}"


def devices_of(free: int = 80 * GIB) -> list[Device]:
    """What a worker has."""
    return [Device(id=f"cuda:{n}", kind="cuda", memory=80 * GIB, memory_free=free) for n in range(DEVICES)]


def spec_of(uid: str, replicas: int, scheduler: str | None = None) -> LaunchSpec:
    """What was asked for: replicas of one device each."""
    return LaunchSpec(model_name="toy", model_uid=uid, replica=replicas, n_gpu=1, scheduler=scheduler)


def ready(spec: LaunchSpec, replica_id: str, incarnation: str, worker: str, devices: Sequence[str]) -> ReplicaRecord:
    """A replica that serves."""
    plan = LaunchPlan(
        uid=spec.model_uid or "",
        replica_id=replica_id,
        incarnation=incarnation,
        engine=EngineRef(name=ENGINE, path="x:X"),
        artifact=Artifact(format="toy", path="/x"),
        endpoint="tcp://x:1",
        devices=list(devices),
        memory=MEMORY,
    )
    status = ReplicaStatus(replica_id=replica_id, state="READY", worker=worker, pid=7)
    return ReplicaRecord(plan=plan, spec=spec, status=status, created=1, model=MODEL, manifest=MANIFEST, slots=8)
