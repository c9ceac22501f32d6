"""Sleep within a replica and on its worker: what may, what is refused, how orders travel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from xi_core.cluster.orders import Orders as GivenOrders
from xi_core.engine.base import LoadedModel, Progress, StepOutput
from xi_core.errors import Conflict, EngineError, ErrorBody, InvalidRequest, ModelAsleep, ReplicaLost, Unavailable, UnsupportedField
from xi_core.replica.orders import Orders
from xi_core.replica.process import service_for
from xi_core.serving.request import CHAT
from xi_core.serving.service import Service
from xi_core.testing.fakes import CountingEngine
from xi_core.testing.harness import Answer, plan_for
from xi_core.testing.waiting import until
from xi_core.wire.frames import End, Frame, Submit
from xi_core.wire.manifest import YES, Ability, limited, no
from xi_core.wire.order import LONGEST, Order, OrderReader, encode
from xi_core.wire.plan import LaunchPlan, ServingLimits
from xi_core.wire.report import Obeyed, Report
from xi_core.wire.sleep import NO_SLEEP, check_sleep


class Dozer(CountingEngine):
    """Can sleep, and notes what it was asked."""

    ability: Ability = YES

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.fails: Exception | None = None

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        return msgspec.structs.replace(super().load(plan, progress), sleep=self.ability)

    def sleep(self, level: int) -> None:
        self._note(level)

    def wake(self) -> None:
        self._note(0)

    def _note(self, what: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert not self.stats().running, "something runs"
        self.told.append(what)
        if self.fails is not None:
            raise self.fails


class Endless(Dozer):
    """Its requests never end by themselves."""

    def step(self) -> StepOutput:
        threading.Event().wait(0.005)
        return StepOutput([])


@pytest.fixture
async def served() -> Any:
    made: list[Service] = []

    def serve(engine: CountingEngine, **limits: Any) -> Service:
        plan = plan_for("x:Y", "", "fake", "m")
        plan.limits = ServingLimits(**limits)
        made.append(service_for(plan, engine, engine.load(plan, lambda stage, share: None)))
        return made[-1]

    yield serve
    for service in made:
        service.close(2.0)


class Asked:
    """One chat."""

    def __init__(self, service: Service) -> None:
        self.frames: list[Frame] = []
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
        service.submit(Submit(1, CHAT, msgspec.json.encode(body)), self.frames.append)

    async def answer(self) -> Answer:
        await until(lambda: any(isinstance(frame, End) for frame in self.frames), 5.0)
        return Answer(self.frames)


Serve = Callable[..., Service]


async def test_asleep_it_refuses_and_awake_it_serves(served: Serve) -> None:
    engine = Dozer()
    service = served(engine)
    await service.sleep(2)
    await service.sleep(2)
    assert (service.asleep, service.load().asleep, engine.told) == (2, 2, [2])
    refused = await Asked(service).answer()
    assert refused.status == 503
    assert (refused.error or {})["code"] == ModelAsleep.code
    await service.wake()
    await service.wake()
    assert (service.asleep, service.load().asleep, engine.told) == (0, 0, [2, 0])
    assert (await Asked(service).answer()).status == 200


async def test_what_runs_ends_first_while_new_requests_are_refused(served: Serve) -> None:
    engine = Dozer()
    engine.pace = 0.001
    service = served(engine)
    running = Asked(service)
    falling = asyncio.create_task(service.sleep(1))
    await until(lambda: service.asleep == 1, 5.0)
    assert engine.told == []
    assert (await Asked(service).answer()).status == 503
    await falling
    assert (await running.answer()).text.endswith("fifteen")
    assert engine.told == [1]


async def test_what_runs_too_long_is_ended(served: Serve) -> None:
    engine = Endless()
    service = served(engine, grace=0.05)
    running = Asked(service)
    await service.sleep(1)
    ended = await running.answer()
    assert ended.status == 503
    assert "put to sleep before this request was done" in (ended.error or {})["message"]
    assert engine.told == [1]


async def test_a_request_that_stays_in_the_engine_keeps_it_awake(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clinging(Endless):
        def remove(self, id: int) -> None:
            pass

    monkeypatch.setattr("xi_core.serving.sleeping.LEAVING", 0.05)
    engine = Clinging()
    service = served(engine, grace=0.05)
    Asked(service)
    await until(lambda: engine.stats().running == 1, 5.0)
    with pytest.raises(Unavailable, match="still runs requests that were ended"):
        await service.sleep(1)
    assert (service.asleep, engine.told, service.failure) == (0, [], None)


async def test_another_level_is_a_conflict(served: Serve) -> None:
    service = served(Dozer())
    await service.sleep(1)
    with pytest.raises(Conflict, match="wake it first: xi wake m"):
        await service.sleep(2)
    assert service.asleep == 1


async def test_an_engine_without_sleep_mode_says_so_and_serves_on(served: Serve) -> None:
    service = served(CountingEngine())
    with pytest.raises(UnsupportedField, match=r"model 'm' can't sleep on engine Y: it has no sleep mode"):
        await service.sleep(1)
    assert (await Asked(service).answer()).status == 200
    for order in (lambda: CountingEngine().sleep(1), CountingEngine().wake):
        with pytest.raises(UnsupportedField, match="CountingEngine can't sleep"):
            order()


@pytest.mark.parametrize("error", [EngineError("no memory"), ZeroDivisionError("a fault of its library")])
async def test_an_engine_that_breaks_over_it_fails_for_good(served: Serve, error: Exception) -> None:
    engine = Dozer()
    engine.fails = error
    service = served(engine)
    with pytest.raises(EngineError, match=str(error)):
        await service.sleep(1)
    assert service.asleep == 0
    assert isinstance(service.failure, EngineError)


async def test_an_engine_that_breaks_as_it_wakes_fails_for_good(served: Serve) -> None:
    engine = Dozer()
    service = served(engine)
    await service.sleep(1)
    engine.fails = EngineError("no memory")
    with pytest.raises(EngineError):
        await service.wake()
    assert isinstance(service.failure, EngineError)
    assert (await Asked(service).answer()).status == 503


async def test_an_engine_that_refuses_is_as_before(served: Serve) -> None:
    engine = Dozer()
    engine.fails = Conflict("busy")
    service = served(engine)
    with pytest.raises(Conflict):
        await service.sleep(1)
    assert (service.asleep, service.failure) == (0, None)
    assert (await Asked(service).answer()).status == 200


@pytest.mark.parametrize(
    ("ability", "level", "words"),
    [
        (NO_SLEEP, 1, "on engine e: it has no sleep mode; `xi terminate` frees the memory"),
        (no("launch it with --x"), 2, "on engine e: launch it with --x"),
        (limited("1", reason="a reason"), 2, "at level 2 on engine e, only at 1: a reason"),
        (limited("1"), 2, "at level 2 on engine e, only at 1$"),
    ],
)
def test_refusals_say_what_to_do(ability: Ability, level: int, words: str) -> None:
    with pytest.raises(UnsupportedField, match=f"model 'm' can't sleep {words}"):
        check_sleep("m", "e", ability, level)


@pytest.mark.parametrize(("ability", "level"), [(YES, 1), (YES, 2), (limited("1"), 1)])
def test_levels_that_are_there(ability: Ability, level: int) -> None:
    check_sleep("m", "e", ability, level)


# ---- orders on their way ----------------------------------------------------------------------------


def test_orders_are_whole_however_they_come() -> None:
    orders = [Order(1, 1), Order(2, 0), Order(3, 2)]
    data = b"".join(encode(order) for order in orders)
    assert OrderReader().feed(data) == orders
    reader = OrderReader()
    assert [order for byte in data for order in reader.feed(bytes([byte]))] == orders


@pytest.mark.parametrize("data", [(LONGEST + 1).to_bytes(4, "big"), b"\0\0\0\2no"])
def test_what_is_no_order_is_an_error(data: bytes) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError)):
        OrderReader().feed(data)


async def test_a_replica_obeys_one_order_after_the_other(served: Serve) -> None:
    engine, reports = Dozer(), list[Report]()
    service = served(engine)
    orders = Orders(reports.append)
    obeying = asyncio.create_task(orders.obey(service))
    data = b"".join(encode(order) for order in (Order(1, 1), Order(2, 2), Order(3, 0)))
    await asyncio.to_thread(orders.take, data)
    await until(lambda: len(reports) == 3, 5.0)
    await asyncio.to_thread(orders.take, b"\xff\xff\xff\xff")  # what follows can't be told from it
    await asyncio.to_thread(orders.take, encode(Order(4, 1)))
    await asyncio.sleep(0)
    obeying.cancel()
    slept, refused, woke = reports
    assert slept == Obeyed(number=1, level=1)
    assert isinstance(refused, Obeyed)
    assert refused.error is not None
    assert (refused.level, refused.error.code) == (1, Conflict.code)
    assert woke == Obeyed(number=3, level=0)


async def test_a_fault_of_an_engine_is_told_and_the_next_order_obeyed(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    service, reports = served(Dozer()), list[Report]()

    async def fault(level: int) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(service, "sleep", fault)
    orders = Orders(reports.append)
    obeying = asyncio.create_task(orders.obey(service))
    orders.take(encode(Order(1, 1)) + encode(Order(2, 0)))
    await until(lambda: len(reports) == 2, 5.0)
    obeying.cancel()
    assert isinstance(reports[0], Obeyed)
    assert reports[0].error is not None
    assert reports[0].error.message == "RuntimeError: a fault of ours"
    assert reports[1] == Obeyed(number=2, level=0)


class Process:
    """Takes orders and does nothing."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def order(self, order: Order) -> None:
        self.orders.append(order)


async def test_a_worker_waits_for_the_answer_of_its_own_order() -> None:
    given, process = GivenOrders(), Process()
    tasks = [asyncio.create_task(given.give(process, level)) for level in (1, 0, 2)]  # type: ignore[arg-type]
    await until(lambda: len(process.orders) == 3, 5.0)
    assert process.orders == [Order(1, 1), Order(2, 0), Order(3, 2)]
    given.obeyed(Obeyed(number=9, level=0))
    given.obeyed(Obeyed(number=2, level=0))
    given.obeyed(Obeyed(number=2, level=0))
    await tasks[1]
    given.obeyed(Obeyed(number=1, level=0, error=InvalidRequest("no", param="level").body()))
    with pytest.raises(InvalidRequest, match="no"):
        await tasks[0]
    given.end("it died")
    with pytest.raises(ReplicaLost, match="it died"):
        await tasks[2]
    given.obeyed(Obeyed(number=3, level=0, error=ErrorBody(message="late")))
    with pytest.raises(ReplicaLost, match="it died"):
        await given.give(process, 1)  # type: ignore[arg-type]
    assert len(process.orders) == 3
