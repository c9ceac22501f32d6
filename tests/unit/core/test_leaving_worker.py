"""The pure core where a worker is told to stop, and what users see of launches: masked values, differences, ended replicas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec, ReplicaStatus
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Wanted
from xi_core.cluster.ledger import Ledger
from xi_core.cluster.lifecycle import RESTARTS, Lifecycle
from xi_core.cluster.members import Member, place
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.placement import Assignment, ClusterView, Placement, PlacementRequest, Rejection, Scheduler
from xi_core.cluster.replicas import Start
from xi_core.errors import Conflict
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan


class Anywhere(Scheduler):
    """The first worker, with the last of its devices where some are wanted."""

    def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
        worker = cluster.workers[0]
        names = tuple(d.device for d in worker.devices)
        return Placement(assignments=(Assignment(worker.worker, names[len(names) - request.n_gpu :]),))


def member(name: str = "w1", *devices: str) -> Member:
    return Member(name, "i1", [Device(id=device, kind="cuda") for device in devices], ("e",))


def wanted(**fields: Any) -> Wanted:
    spec = LaunchSpec(model_name="toy", model_uid="m", **fields)
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    return Wanted(uid="m", spec=spec, model=model, engine="e", n_gpu=0, created=1)


def cluster() -> Lifecycle:
    core = Lifecycle(Anywhere(), "e", launch_timeout=100.0, grace=5.0)
    core.worker_joined(0.0, member(), [])
    return core


def starts(actions: list[Any]) -> list[Start]:
    return [action for action in actions if isinstance(action, Start)]


def test_replicas_of_a_worker_that_is_stopped_are_not_started_on_it_again() -> None:
    core = cluster()
    lives = starts(core.accept(0.0, wanted(replica=2)))
    assert core.worker_leaving("w1") == []
    for life in lives:
        assert core.replica_gone(1.0, life.incarnation) == []
    assert core.next_wake() == 100.0, "only the launch's deadline is left to wait for"
    assert core.tick(50.0) == []
    again = starts(core.worker_joined(60.0, member(), []))
    assert [s.replica_id for s in again] == ["m-0", "m-1"]


def test_being_stopped_is_no_death() -> None:
    core, now = cluster(), 0.0
    (life,) = starts(core.accept(now, wanted()))
    for _ in range(RESTARTS + 2):
        core.worker_leaving("w1")
        core.replica_gone(now, life.incarnation, "it was killed")
        (life,) = starts(core.worker_joined(now, member(), []))
    found = core.find("m")
    assert found is not None
    assert found.state != "FAILED"
    assert found.replicas[0].error is None


def test_one_that_is_stopping_and_registers_again_takes_nothing() -> None:
    """Its word may not have been heard: no supervisor was there."""
    core, now = cluster(), 0.0
    (life,) = starts(core.accept(now, wanted()))
    core.worker_left(1.0, "w1")
    record = ReplicaRecord(
        plan=LaunchPlan(
            uid="m",
            replica_id="m-0",
            incarnation=life.incarnation,
            engine=EngineRef(name="e", path="x:X"),
            artifact=Artifact(format="toy", path="/x"),
            endpoint="ipc:///x",
        ),
        spec=wanted().spec,
        status=ReplicaStatus(replica_id="m-0", state="STOPPING", worker="w1"),
        created=1,
        model=wanted().model,
    )
    stopping = replace(member(), present=False, leaving=True)
    core.worker_joined(2.0, stopping, [record])
    assert core.replica_gone(3.0, life.incarnation, "it was stopped") == []
    found = core.find("m")
    assert found is not None
    assert (found.state, found.replicas[0].restarts, found.replicas[0].error) == ("PENDING", 0, None)
    assert starts(core.worker_joined(9.0, member(), []))


def test_its_replicas_go_to_another_worker() -> None:
    core = cluster()
    (life,) = starts(core.accept(0.0, wanted()))
    core.worker_joined(0.0, member("w2"), [])
    core.worker_leaving("w1")
    assert [s.assignments[0].worker for s in starts(core.replica_gone(1.0, life.incarnation))] == ["w2"]


def test_values_of_the_environment_are_masked_for_users_but_compared_for_launches() -> None:
    core = cluster()
    core.accept(0.0, wanted(env={"HF_TOKEN": "secret"}))
    found = core.find("m")
    assert found is not None
    assert found.status().spec.env == {"HF_TOKEN": "***"}
    assert core.accept(1.0, wanted(env={"HF_TOKEN": "secret"})) == []
    with pytest.raises(Conflict, match=r"another spec \(replica, env differs\)") as caught:
        core.accept(1.0, wanted(env={"HF_TOKEN": "other"}, replica=2))
    assert "secret" not in caught.value.message
    assert found.wanted.spec.env == {"HF_TOKEN": "secret"}


def test_replicas_of_an_ended_launch_say_so() -> None:
    core = cluster()
    (life,) = starts(core.accept(0.0, wanted()))
    core.terminate(1.0, "m")
    core.replica_gone(2.0, life.incarnation)
    found = core.find("m")
    assert found is not None
    assert (found.state, found.status().replicas[0].state) == ("CANCELLED", "CANCELLED")


def test_a_failed_launch_is_not_restarting() -> None:
    core = cluster()
    (life,) = starts(core.accept(0.0, wanted()))
    core.replica_gone(1.0, life.incarnation, "no such weights", final=True)
    found = core.find("m")
    assert found is not None
    replica = found.status().replicas[0]
    assert (replica.state, replica.stage, replica.error) == ("FAILED", "", "no such weights")


def test_devices_are_named_by_their_own_numbers() -> None:
    """A worker that may see only cuda:1 has it in the first place; `gpu_idx` still calls it 1."""
    request = PlacementRequest(uid="m", engine="e", n_gpu=1, gpu_idx=(1,))
    ledger = Ledger()
    ledger.join(member("w1", "cuda:1"))
    seen = ledger.view()
    assert isinstance(place(Anywhere(), request, seen), Placement)
    zero = PlacementRequest(uid="m", engine="e", n_gpu=1, gpu_idx=(0,))
    refused = place(Anywhere(), zero, seen)
    assert isinstance(refused, Rejection)
    assert "not in the pool 0" in refused.reason
