"""The life of a rank above 0."""

from __future__ import annotations

import asyncio
import queue

import pytest
from msgspec.structs import replace

from xi_core.cluster.process import tag
from xi_core.engine.base import ApiEngine, ApiRequest, ApiSink, EngineStats, LoadedModel, Progress
from xi_core.engine.rank_link import RankLink
from xi_core.errors import EngineError
from xi_core.replica import rank
from xi_core.replica.rank import serve_rank
from xi_core.testing.fakes import CountingEngine
from xi_core.testing.harness import plan_for
from xi_core.testing.waiting import until
from xi_core.wire.manifest import of_fields
from xi_core.wire.plan import LaunchPlan, RankAddress, Rendezvous
from xi_core.wire.report import Health, Ready, Report

MODEL = LoadedModel(context_length=64, slots=2, manifest=of_fields())
LAST = b"\x93\x90\x90\xc3"
STEP = b"\x93\x90\x90\xc2"


class Wire(RankLink):
    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def broadcast(self, message: bytes) -> bytes:
        found = self.inbox.get(timeout=10)
        if isinstance(found, Exception):
            raise found
        return found


class Follower(CountingEngine):
    def __init__(self, wire: Wire | None) -> None:
        super().__init__()
        self.wire = wire
        self.closed = False
        self.broken: EngineError | None = None

    @property
    def rank_link(self) -> RankLink | None:
        return self.wire

    def check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def close(self, grace: float) -> None:
        self.closed = True


class Answering(ApiEngine):
    """Its ranks talk among themselves."""

    def __init__(self) -> None:
        self.closed = False
        self.broken: EngineError | None = None

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        return MODEL

    def check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self, grace: float) -> None:
        self.closed = True

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        raise AssertionError("nobody asks it")

    def abort(self, id: int) -> None:
        raise AssertionError("nobody asks it")


class Life:
    """A rank as a task."""

    def __init__(self, wire: Wire | None = None, grace: float = 5.0) -> None:
        self.engine = Follower(wire)
        self.told: list[Report] = []
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(serve_rank(self.engine, MODEL, self.told.append, self.stop, grace))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "INTERVAL", 0.02)


async def test_it_is_ready_tells_that_it_lives_and_follows_to_the_end() -> None:
    wire = Wire()
    life = Life(wire)
    wire.inbox.put(STEP)
    await until(lambda: isinstance(life.told[-1], Health) and life.told[-1].steps == 1 if life.told else False)
    assert isinstance(life.told[0], Ready)
    assert (life.told[0].endpoint, life.told[0].slots) == ("", 2)
    wire.inbox.put(LAST)
    life.stop.set()
    await asyncio.wait_for(life.task, 5)
    assert life.engine.closed


async def test_asked_to_stop_it_goes_on_until_rank_0_has_ended() -> None:
    wire = Wire()
    life = Life(wire)
    await until(lambda: bool(life.told))
    life.stop.set()
    wire.inbox.put(STEP)
    await until(lambda: life.engine.stats().steps == 1)
    assert not life.task.done()
    wire.inbox.put(LAST)
    await asyncio.wait_for(life.task, 5)


async def test_asked_to_stop_it_waits_for_rank_0_no_longer_than_the_grace() -> None:
    wire = Wire()
    life = Life(wire, grace=0.05)
    life.stop.set()
    await asyncio.wait_for(life.task, 5)
    assert life.engine.closed
    wire.inbox.put(LAST)


async def test_a_rank_that_an_engine_s_own_processes_link_is_stopped_at_once() -> None:
    life = Life(None)
    await until(lambda: len(life.told) > 2)
    life.stop.set()
    await asyncio.wait_for(life.task, 5)


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError("connection reset"), "this rank lost rank 0: connection reset"), (EngineError("it differs"), "^it differs$")],
)
async def test_a_lost_rank_0_ends_it(error: Exception, words: str) -> None:
    wire = Wire()
    life = Life(wire)
    wire.inbox.put(error)
    with pytest.raises(EngineError, match=words):
        await asyncio.wait_for(life.task, 5)
    assert life.engine.closed


async def test_a_broken_engine_ends_it() -> None:
    life = Life(None)
    life.engine.broken = EngineError("a child has died")
    with pytest.raises(EngineError, match="a child has died"):
        await asyncio.wait_for(life.task, 5)


async def test_rank_0_has_ended_and_nobody_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "LAST_WORD", 0.05)
    wire = Wire()
    life = Life(wire)
    wire.inbox.put(LAST)
    with pytest.raises(EngineError, match="rank 0 has ended"):
        await asyncio.wait_for(life.task, 5)


def test_ranks_that_share_a_machine_have_tags_of_their_own() -> None:
    """A worker ends all that carries the tag of what it ran; the other worker's rank is not among it."""
    world = tuple(RankAddress(rank=number, worker=f"w{number}", host="127.0.0.1") for number in range(3))
    plan = plan_for("x:Y", "", "fake")
    tags = [tag(plan), *(tag(replace(plan, rendezvous=Rendezvous(rank=number, world=world))) for number in range(3))]
    assert tags == ["under-test-0@test", "under-test-0@test", "under-test-0@test.rank1", "under-test-0@test.rank2"]


async def test_a_rank_of_an_engine_with_a_link_of_its_own_goes_on_while_rank_0_finishes() -> None:
    stop, engine = asyncio.Event(), Answering()
    task = asyncio.create_task(serve_rank(engine, MODEL, lambda report: None, stop, 5.0))
    stop.set()
    await asyncio.sleep(5 * rank.INTERVAL)
    assert not engine.closed
    engine.broken = EngineError("its server has ended")
    await asyncio.wait_for(task, 2)
    assert engine.closed


async def test_it_ends_after_its_grace_whatever_rank_0_does() -> None:
    stop, engine = asyncio.Event(), Answering()
    stop.set()
    await asyncio.wait_for(serve_rank(engine, MODEL, lambda report: None, stop, 0.1), 2)
    assert engine.closed
