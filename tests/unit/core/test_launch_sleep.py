"""Sleep as the supervisor has it: what it shows, whom it asks, and what it refuses before it asks anybody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec, ReplicaStatus
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.messages import ReplicaRecord, Sleep, SleepReplica
from xi_core.cluster.replicas import Start
from xi_core.cluster.sleeping import LaunchSleep, ReplicaSleep
from xi_core.errors import Conflict, EngineError, ModelNotFound, Unavailable, UnsupportedField
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import YES, Ability, limited, no, of_fields
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan
from xi_plugins.schedulers.idle_first import IdleFirst

MODEL = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="/x"))


class Town:
    """A lifecycle with two workers, and what their links were asked."""

    def __init__(self) -> None:
        self.lifecycle = Lifecycle(IdleFirst(), "e", launch_timeout=60.0, grace=5.0)
        self.asked: list[tuple[str, SleepReplica]] = []
        self.fails: dict[str, Exception] = {}
        self.workers: dict[str, Any] = {}
        for name in ("w1", "w2"):
            self.lifecycle.worker_joined(0.0, Member(name, f"life-{name}", [], ("e",)), [])
            self.workers[name] = _Worker(self, name)
        self.sleep = next(iter(LaunchSleep(self, self.lifecycle).calls().values()))  # type: ignore[arg-type]

    def launch(self, replica: int = 2) -> list[Start]:
        spec = LaunchSpec(model_name="toy", replica=replica, n_gpu=None)
        wanted = Wanted(uid="m", spec=spec, model=MODEL, engine="e", n_gpu=0, created=1)
        return [action for action in self.lifecycle.accept(0.0, wanted) if isinstance(action, Start)]

    def tell(self, life: Start, sleep: Ability = YES, asleep: int = 0) -> None:
        """Its worker tells that a replica is READY."""
        worker, found = life.assignments[0].worker, self.lifecycle.known("m")
        plan = LaunchPlan(
            uid="m", replica_id=life.replica_id, incarnation=life.incarnation, engine=EngineRef(name="e", path="x:X"),
            artifact=Artifact(format="toy", path="/x"), endpoint="ipc:///x",
        )  # fmt: skip
        status = ReplicaStatus(replica_id=life.replica_id, state="READY", worker=worker, pid=7, asleep=asleep)
        record = ReplicaRecord(
            plan=plan, spec=found.wanted.spec, status=status, created=1, model=MODEL, manifest=of_fields(chat={}), sleep=sleep
        )
        self.lifecycle.replica_updated(1.0, worker, record)


class _Worker:
    def __init__(self, town: Town, name: str) -> None:
        self.town, self.name, self.link = town, name, self

    async def call(self, command: SleepReplica, timeout: float | None) -> None:
        assert timeout is None
        self.town.asked.append((self.name, command))
        if self.name in self.town.fails:
            raise self.town.fails[self.name]


def shown(town: Town) -> tuple[str, int, int, list[int]]:
    status = town.lifecycle.known("m").status()
    return status.state, status.ready_replicas, status.asleep_replicas, [replica.asleep for replica in status.replicas]


def test_a_launch_shows_who_sleeps_and_stays_ready_and_routed() -> None:
    town = Town()
    one, two = town.launch()
    town.tell(one)
    town.tell(two, asleep=2)
    assert shown(town) == ("READY", 1, 1, [0, 2])
    assert len(town.lifecycle.known("m").route().replicas) == 2
    town.tell(two)
    assert shown(town) == ("READY", 2, 0, [0, 0])


def test_the_next_life_of_one_that_slept_is_awake() -> None:
    town = Town()
    (one,) = town.launch(replica=1)
    town.tell(one, asleep=1)
    town.lifecycle.replica_gone(2.0, one.incarnation, "it died")
    assert shown(town)[2:] == (0, [0])


async def test_every_worker_is_asked_for_its_replicas() -> None:
    town = Town()
    lives = town.launch()
    for life in lives:
        town.tell(life)
    await town.sleep(Sleep("m", 2))
    assert sorted((name, order.replica_id, order.incarnation, order.level) for name, order in town.asked) == sorted(
        (life.assignments[0].worker, life.replica_id, life.incarnation, 2) for life in lives
    )


async def test_nobody_is_asked_where_one_replica_can_not() -> None:
    town = Town()
    one, two = town.launch()
    town.tell(one)
    town.tell(two, no("launch it with --x"))
    with pytest.raises(UnsupportedField, match="launch it with --x"):
        await town.sleep(Sleep("m", 1))
    town.tell(two, limited("1"))
    with pytest.raises(UnsupportedField, match="only at 1"):
        await town.sleep(Sleep("m", 2))
    town.tell(two, asleep=1)
    with pytest.raises(Conflict, match="sleeps at level 1 already"):
        await town.sleep(Sleep("m", 2))
    assert town.asked == []


async def test_only_a_launch_that_is_ready_falls_asleep_but_whoever_sleeps_can_be_woken() -> None:
    town = Town()
    with pytest.raises(ModelNotFound, match="no model 'm' is launched; launched: none"):
        await town.sleep(Sleep("m", 1))
    one, two = town.launch()
    for level in (0, 1):
        with pytest.raises(Conflict, match="model 'm' is PENDING"):
            await town.sleep(Sleep("m", level))
    town.tell(one, asleep=1)
    with pytest.raises(Conflict, match="model 'm' is PENDING"):
        await town.sleep(Sleep("m", 1))
    await town.sleep(Sleep("m", 0))
    assert [order.replica_id for _, order in town.asked] == [one.replica_id]
    town.tell(two)
    town.lifecycle.terminate(2.0, "m")
    with pytest.raises(Conflict, match="model 'm' is STOPPING"):
        await town.sleep(Sleep("m", 0))


async def test_all_are_asked_though_one_fails_and_a_worker_that_is_away_is_named() -> None:
    town = Town()
    for life in town.launch():
        town.tell(life)
    town.fails["w1"] = EngineError("no memory")
    with pytest.raises(EngineError, match="no memory"):
        await town.sleep(Sleep("m", 1))
    assert len(town.asked) == 2
    del town.workers["w2"]
    town.fails.clear()
    with pytest.raises(Unavailable, match="worker w2 is away"):
        await town.sleep(Sleep("m", 1))


async def test_a_worker_asks_only_the_life_that_was_meant() -> None:
    class Running:
        plan = LaunchPlan(
            uid="m", replica_id="m-0", incarnation="e-2", engine=EngineRef(name="e", path="x:X"),
            artifact=Artifact(format="toy", path="/x"), endpoint="",
        )  # fmt: skip

        def __init__(self) -> None:
            self.levels: list[int] = []

        async def sleep(self, level: int) -> None:
            await asyncio.sleep(0)
            self.levels.append(level)

    running = Running()
    sleep = ReplicaSleep({"m-0": running}).calls()[SleepReplica]
    await sleep(SleepReplica(replica_id="m-0", incarnation="e-2", level=1))
    for stale in ({"replica_id": "m-0", "incarnation": "e-1"}, {"replica_id": "m-1", "incarnation": "e-2"}):
        with pytest.raises(Conflict, match="started anew"):
            await sleep(SleepReplica(level=1, **stale))
    assert running.levels == [1]
