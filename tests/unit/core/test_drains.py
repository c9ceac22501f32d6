"""Workers that are drained: by name, over their own lives and the supervisor's, until that is undone or they are removed."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xi_core.api.control import LaunchSpec, LaunchState, ReplicaStatus
from xi_core.cluster.desired import Desired
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord
from xi_core.cluster.replicas import Action, Start, Stop
from xi_core.cluster.store import Store
from xi_core.errors import NoPlacement, WorkerNotFound
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan
from xi_plugins.schedulers.idle_first import IdleFirst

MODEL = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
WANTED = Wanted(uid="m", spec=LaunchSpec(model_name="toy", model_uid="m"), model=MODEL, engine="e", n_gpu=0, created=1)


def core(*workers: str, **more: Any) -> Lifecycle:
    made = Lifecycle(IdleFirst(), "e", launch_timeout=100.0, grace=5.0, **more)
    for name in workers:
        made.worker_joined(0.0, member(name), [])
    return made


def member(name: str, incarnation: str = "i1") -> Member:
    return Member(name, incarnation, [], ("e",))


def record(worker: str, replica_id: str = "m-0", life: str = "old-1", state: LaunchState = "READY") -> ReplicaRecord:
    """A replica that runs since a former life of the supervisor."""
    plan = LaunchPlan(
        uid="m",
        replica_id=replica_id,
        incarnation=life,
        engine=EngineRef(name="e", path="x:Y"),
        artifact=Artifact(format="toy", path="/x"),
        endpoint="ipc:///x",
    )
    status = ReplicaStatus(replica_id=replica_id, state=state, worker=worker)
    return ReplicaRecord(status=status, spec=WANTED.spec, model=MODEL, plan=plan, created=1, manifest=of_fields(chat={}))


def starts(actions: list[Action]) -> list[str]:
    return [action.assignments[0].worker for action in actions if isinstance(action, Start)]


def test_nothing_is_placed_where_a_former_supervisor_was_told_to_drain() -> None:
    restored = core("w1", "w2", drains={"w1": 50.0})
    assert starts(restored.accept(1.0, msgspec.structs.replace(WANTED, spec=msgspec.structs.replace(WANTED.spec, replica=3)))) == ["w2"] * 3
    restored.undrain(2.0, "w1")
    assert restored.drains == {}
    assert starts(restored.accept(3.0, msgspec.structs.replace(WANTED, uid="n", spec=LaunchSpec(model_name="toy", model_uid="n")))) == [
        "w1"
    ]


def test_what_still_runs_there_moves_on_by_the_time_that_was_set() -> None:
    restored = core("w2", drains={"w1": 50.0}, settled_at=3.0)
    restored.restore(0.0, WANTED)
    assert restored.worker_joined(1.0, member("w1"), [record("w1")]) == []
    assert starts(restored.tick(3.0)) == ["w2"]
    found = restored.find("m")
    assert found is not None
    assert [(r.replica_id, r.move_by) for r in found.replicas] == [("m-0", 50.0), ("m-1", None)]
    assert [action.replica_id for action in restored.tick(50.0) if isinstance(action, Stop)] == ["m-0"]


@pytest.mark.parametrize("first", ["w1", "w2"])
def test_what_serves_goes_on_until_its_replacement_does_whoever_reports_first(first: str) -> None:
    """The supervisor ended while the replica on w1 was being replaced by one on w2, which loads."""
    restored = core(drains={"w1": 50.0}, settled_at=9.0)
    restored.restore(0.0, WANTED)
    here = {"w1": [record("w1")], "w2": [record("w2", "m-1", "old-2", "STARTING")]}
    actions: list[Action] = []
    for now, worker in enumerate(sorted(here, key=lambda name: name != first), 1):
        actions += restored.worker_joined(now, member(worker), here[worker])
    assert [action for action in actions if isinstance(action, Stop)] == []
    found = restored.find("m")
    assert found is not None
    assert (found.state, [r.replica_id for r in found.replicas if r.state == "READY"]) == ("READY", ["m-0"])
    assert [(r.replica_id, r.replaces, r.move_by) for r in found.replicas] == [("m-0", "", 50.0), ("m-1", "m-0", None)]
    ready = restored.replica_updated(20.0, "w2", record("w2", "m-1", "old-2"))
    assert [(action.worker, action.grace) for action in ready if isinstance(action, Stop)] == [("w1", 5.0)]
    assert (found.state, [r.replica_id for r in found.replicas if r.wanted]) == ("READY", ["m-1"])


def test_a_time_that_passed_while_no_supervisor_was_there_ends_what_is_left() -> None:
    restored = core(drains={"w1": -10.0})
    restored.restore(0.0, WANTED)
    restored.worker_joined(1.0, member("w1"), [record("w1")])
    assert restored.next_wake() == -10.0
    assert [action.grace for action in restored.tick(1.0) if isinstance(action, Stop)] == [5.0]


def test_a_worker_that_is_started_anew_is_the_same_and_a_removed_one_begins_anew() -> None:
    drained = core("w1")
    drained.drain(1.0, "w1", 10.0)
    drained.worker_left(2.0, "w1")
    drained.worker_joined(3.0, member("w1", "i2"), [])
    with pytest.raises(NoPlacement):
        drained.accept(4.0, WANTED)
    drained.worker_removed(5.0, "w1")
    assert drained.drains == {}
    drained.worker_joined(6.0, member("w1", "i3"), [])
    assert starts(drained.accept(7.0, WANTED)) == ["w1"]


def test_one_that_has_not_come_back_is_known_and_can_be_removed() -> None:
    restored = core("w2", drains={"w1": 50.0})
    with pytest.raises(WorkerNotFound, match="no worker 'w9'; workers: w1, w2"):
        restored.undrain(1.0, "w9")
    restored.drain(1.0, "w1", 9.0)
    assert restored.drains == {"w1": 10.0}
    restored.worker_removed(2.0, "w1")
    assert restored.drains == {}


# ---- written down -------------------------------------------------------------------------------


async def test_drains_are_written_down_by_the_clock_on_the_wall(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    desired = Desired(store)
    desired.keep([], {"w1": time.monotonic() + 60, "w2": time.monotonic() - 5})
    await desired.kept()
    desired.keep([WANTED], {"w1": desired.drains["w1"]})
    await desired.kept()
    store.close()
    store = Store(tmp_path)
    assert store.drains()["w1"] == pytest.approx(time.time() + 60, abs=5)
    with caplog.at_level(logging.WARNING):
        again = Desired(store)
    assert again.drains == {"w1": pytest.approx(time.monotonic() + 60, abs=5)}
    assert "worker w1 is drained, since before this start; `xi drain w1 --undo` lets it take replicas again" in caplog.text
    again.forget_all()  # as `--no-restore`, which is about launches
    assert (again.restore(), list(again.drains)) == ([], ["w1"])
    again.keep([], {})
    await again.kept()
    assert store.drains() == {}
    store.close()


async def test_a_drain_that_could_not_be_written_is_written_with_the_next_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    desired, keep = Desired(store), store.keep_drains

    def full(drains: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "keep_drains", full)
    desired.keep([], {"w1": 1.0})
    await desired.kept()
    monkeypatch.setattr(store, "keep_drains", keep)
    desired.keep([], {"w1": 1.0})
    await desired.kept()
    assert list(store.drains()) == ["w1"]
    store.close()


def test_a_database_of_before_drains_were_kept_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep_launches([("m", b"x")], [])
    store.close()
    with sqlite3.connect(store.path) as db:
        db.execute("DROP TABLE drains")
    db.close()
    store = Store(tmp_path)
    assert (store.drains(), store.launches()) == ({}, [b"x"])
    store.keep_drains({"w1": 1.0})
    store.close()
