"""Services beyond what the engine kit checks: queues, failures, probes, draining, broken events."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import msgspec
import pytest

from xi_core.engine.base import ApiRequest, ApiSink, EngineStats, LoadedModel, Progress, StepOutput
from xi_core.errors import EngineError
from xi_core.replica.process import service_for
from xi_core.serving.loop_queue import LoopQueue
from xi_core.serving.parser import OutputParser, Parsed
from xi_core.serving.progress import probe
from xi_core.serving.request import CHAT
from xi_core.serving.service import Service
from xi_core.serving.tokens import TokenService
from xi_core.testing.fake_plugin import full_manifest
from xi_core.testing.fakes import CONTEXT, TEXT, ByteTokenizer, CountingEngine, ScriptedEngine
from xi_core.testing.harness import Answer, plan_for
from xi_core.wire.frames import Data, End, Frame, Open, Submit
from xi_core.wire.plan import LaunchPlan, ServingLimits


class Client:
    """Frames of one request."""

    def __init__(self, service: Service, id: int = 1, **fields: Any) -> None:
        self.frames: list[Frame] = []
        self.moved = asyncio.Event()
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, **fields}
        self.run = service.submit(Submit(id, CHAT, msgspec.json.encode(body)), self._put)

    def _put(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.moved.set()

    async def until(self, kind: type[Any]) -> None:
        async with asyncio.timeout(5):
            while not any(isinstance(frame, kind) for frame in self.frames):
                self.moved.clear()
                await self.moved.wait()

    async def answer(self) -> Answer:
        await self.until(End)
        return Answer(self.frames)


@contextlib.asynccontextmanager
async def serving(engine: Any, *, parser: type[OutputParser] | None = None, slots: int = 1, **limits: Any) -> AsyncIterator[Service]:
    plan: LaunchPlan = plan_for("x:Y", "", "fake", slots=slots)
    plan.limits = ServingLimits(**limits)
    if parser is not None:
        plan.parsers["tool"] = "xi_plugins.parsers.hermes:HermesParser"
    service = service_for(plan, engine, engine.load(plan, lambda stage, share: None))
    if isinstance(service, TokenService) and parser is not None:
        service._parsers._tool = parser
    try:
        yield service
    finally:
        service.close(2.0)


ENDLESS = {"stream": True, "ignore_eos": True, "max_tokens": 400, "logit_bias": {"65": 1}}


class Stuck(CountingEngine):
    """Takes a sequence and never gives a token."""

    def step(self) -> StepOutput:
        import time

        time.sleep(0.01)
        return StepOutput([])


class Mute(ScriptedEngine):
    """Takes requests and never answers; `sink` is for the test."""

    sink: ApiSink
    taken: list[int]

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        self.taken = []
        return super().load(plan, progress)

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        self.sink = sink
        self.taken.append(request.id)

    def abort(self, id: int) -> None:
        self.sink.done(id)


@pytest.mark.parametrize("engine", [Stuck, Mute])
async def test_a_full_queue_refuses_with_429(engine: Any) -> None:
    async with serving(engine(), queue=1) as service:
        clients = [Client(service, id) for id in (1, 2, 3)]
        answer = await clients[2].answer()
        assert answer.status == 429
        assert isinstance(clients[2].frames[0], Open)
        assert clients[2].frames[0].retry_after
        assert not clients[0].frames
        load = service.load()
        assert load.running + load.waiting == 2


async def test_a_waiting_request_starts_when_a_slot_is_free() -> None:
    engine = Mute()
    async with serving(engine) as service:
        first, second = Client(service, 1), Client(service, 2)
        assert len(engine.taken) == 1, "never more than there are slots"
        assert first.run is not None
        service.abort(first.run)
        async with asyncio.timeout(5):
            while len(engine.taken) < 2:
                await asyncio.sleep(0)
        assert not second.frames


async def test_an_aborted_waiting_request_never_reaches_the_engine() -> None:
    engine = Mute()
    async with serving(engine) as service:
        first, second = Client(service, 1), Client(service, 2)
        assert first.run is not None
        assert second.run is not None
        service.abort(second.run)
        service.abort(first.run)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(engine.taken) == 1
        assert service.load().waiting == 0


async def test_an_engine_that_breaks_ends_its_requests_and_the_service() -> None:
    class Breaks(CountingEngine):
        def step(self) -> StepOutput:
            if self.stats().steps > 5:
                raise RuntimeError("CUDA out of memory")
            return super().step()

    async with serving(Breaks()) as service:
        streamed, waiting = Client(service, 1, **ENDLESS), Client(service, 2)
        answer = await streamed.answer()
        assert answer.status == 200
        assert answer.error is not None
        assert "CUDA out of memory" in answer.error["message"]
        assert b"[DONE]" not in answer.raw
        assert (await waiting.answer()).status == 500
        assert service.failure is not None
        assert service.unhealthy()
        assert (await Client(service, 3).answer()).status == 503


async def test_no_step_while_busy_is_unhealthy() -> None:
    async with serving(Stuck(), hang_timeout=0.05) as service:
        assert service.unhealthy() is None
        Client(service)
        async with asyncio.timeout(5):
            while service.unhealthy() is None:
                await asyncio.sleep(0.01)
        assert "no step" in (service.unhealthy() or "")


async def test_idle_is_healthy() -> None:
    async with serving(CountingEngine(), hang_timeout=0.01) as service:
        await asyncio.sleep(0.03)
        assert service.unhealthy() is None


async def test_check_is_believed() -> None:
    class Dead(ScriptedEngine):
        def check(self) -> None:
            raise EngineError("the child is dead")

    async with serving(Dead()) as service:
        assert service.unhealthy() == "the child is dead"
        assert service.load().healthy is False


async def test_probe_fails_when_no_token_comes() -> None:
    async with serving(Mute()) as service:
        with pytest.raises(EngineError, match="no token"):
            await probe(service, 0.05)


async def test_drain_waits_then_ends_with_a_typed_error() -> None:
    async with serving(Stuck()) as service:
        client = Client(service, stream=True)
        await service.drain(0.05)
        assert (await client.answer()).status == 503
        assert (await Client(service, 2).answer()).status == 503


async def test_drain_lets_running_requests_finish() -> None:
    async with serving(CountingEngine()) as service:
        client = Client(service)
        await service.drain(5.0)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("events", "message"),
    [([b"{not json"], "can't be read"), ([b'{"choices": []}'], "without a finish reason"), ([], "without a finish reason")],
)
async def test_a_broken_api_engine_is_a_500(events: list[bytes], message: str) -> None:
    engine = Mute()
    async with serving(engine) as service:
        client = Client(service)
        for event in events:
            engine.sink.event(engine.taken[0], event)
        engine.sink.done(engine.taken[0])
        answer = await client.answer()
        assert answer.status == 500
        assert answer.error is not None
        assert message in answer.error["message"]


async def test_counts_of_one_wake_up_per_step() -> None:
    """Frames of one step of many requests come in one turn of the loop."""

    class Paced(CountingEngine):
        def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
            self.slots = 8
            return LoadedModel(context_length=512, slots=8, manifest=full_manifest())

    async with serving(Paced()) as service:
        clients = [Client(service, id, stream=True, max_tokens=4) for id in range(8)]
        for client in clients:
            assert (await client.answer()).finishes == ["length"]
        assert sum(isinstance(frame, Data) for frame in clients[0].frames) <= 4
        stats: EngineStats = service._engine.stats()
        assert stats.tokens == 32


# ---- one request's trouble is its own -------------------------------------------------------------


class Picky(Mute):
    """Raises for the first request that it is given."""

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        super().submit(request, sink)
        if len(self.taken) == 1:
            raise RuntimeError("no such thing")


async def test_a_request_that_the_engine_does_not_take_leaks_no_slot() -> None:
    engine = Picky()
    async with serving(engine) as service:
        first, second = Client(service, 1, n=2), Client(service, 2)
        assert (await first.answer()).status == 500
        async with asyncio.timeout(5):
            while len(engine.taken) < 2:
                await asyncio.sleep(0)
        assert service.load().running == 1
        assert second.run is not None
        service.abort(second.run)
        async with asyncio.timeout(5):
            while service.load().running:
                await asyncio.sleep(0)
        assert not service.busy


async def test_an_api_engine_is_asked_for_no_more_tokens_than_the_context_holds() -> None:
    class Keeper(Mute):
        bodies: ClassVar[list[dict[str, Any]]] = []

        def submit(self, request: ApiRequest, sink: ApiSink) -> None:
            super().submit(request, sink)
            self.bodies.append(request.body)

    async with serving(Keeper(), slots=4) as service:
        for number, most in enumerate((CONTEXT - 1, CONTEXT, 10 * CONTEXT), 1):
            Client(service, number, max_tokens=most)
        assert [body["max_tokens"] for body in Keeper.bodies] == [CONTEXT - 1, CONTEXT, CONTEXT]


class BrokenParser(OutputParser):
    """Raises on whatever it reads."""

    def feed(self, text: str) -> Parsed:
        raise KeyError(text)

    def finish(self) -> Parsed:
        return Parsed()


TOOLS = [{"type": "function", "function": {"name": "f"}}]


async def test_a_parser_that_raises_ends_its_own_request_only() -> None:
    engine = CountingEngine()
    async with serving(engine, parser=BrokenParser, slots=4) as service:
        broken, fine = Client(service, 1, tools=TOOLS), Client(service, 2)
        answer = await broken.answer()
        assert answer.status == 500
        assert "KeyError" not in str(answer.error), "what is inside stays in the log"
        assert (await fine.answer()).text == (await Client(service, 3).answer()).text
        assert engine.stats().running == 0


async def test_a_choice_that_can_not_be_begun_leaves_nothing_in_the_engine() -> None:
    class Second(BrokenParser):
        made = 0

        def __init__(self) -> None:
            Second.made += 1
            if Second.made == 2:
                raise RuntimeError("no parser today")

    engine = CountingEngine()
    async with serving(engine, parser=Second, slots=4) as service:
        assert (await Client(service, 1, tools=TOOLS, n=3, ignore_eos=True).answer()).status == 500
        assert service.load().waiting == 0
        assert not service.busy


async def test_tools_without_a_parser_are_refused() -> None:
    async with serving(CountingEngine()) as service:
        answer = await Client(service, tools=TOOLS).answer()
        assert answer.status == 400
        assert answer.error is not None
        assert (answer.error["param"], answer.error["code"]) == ("tools", "unsupported_field")
        assert (await Client(service, tools=[]).answer()).status == 200


async def test_aborting_a_request_with_some_choices_finished_frees_the_rest() -> None:
    """With a seed, each choice is another text: the stop string ends one of them first."""
    engine = CountingEngine()
    async with serving(engine, slots=4) as service:
        client = Client(service, n=4, seed=1, temperature=1, stop=["e"], stream=True, ignore_eos=True, max_tokens=10**5)
        async with asyncio.timeout(5):
            while not Answer([Open(1, 200, "text/event-stream"), *client.frames[1:]]).finishes:
                client.moved.clear()
                await client.moved.wait()
        assert client.run is not None
        service.abort(client.run)
        sent = len(client.frames)
        async with asyncio.timeout(5):
            while engine.stats().running:
                await asyncio.sleep(0.001)
        assert service.load().waiting == 0
        assert len(client.frames) == sent, "nothing more after an abort"


# ---- long prompts ---------------------------------------------------------------------------------


class Slow(ByteTokenizer):
    """Encodes a long text for a while, or not at all."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def encode(self, text: str) -> list[int]:
        if len(text) > 1000:
            self.began.set()
            self.go.wait(5)
        return super().encode(text)[-100:]


class SlowToEncode(CountingEngine):
    def __init__(self) -> None:
        super().__init__()
        self.slow = Slow()

    @property
    def tokenizer(self) -> Slow:
        return self.slow


LONG = [{"role": "user", "content": "a" * 50_000}]


async def test_a_long_prompt_does_not_hold_up_the_loop() -> None:
    engine = SlowToEncode()
    async with serving(engine) as service:
        long, short = Client(service, 1, messages=LONG), Client(service, 2)
        assert (await short.answer()).status == 200
        assert engine.slow.began.wait(5)
        assert not long.frames
        engine.slow.go.set()
        answer = await long.answer()
        assert (answer.status, answer.usage["prompt_tokens"]) == (200, 100)


async def test_a_long_prompt_that_is_aborted_while_it_is_encoded_leaves_nothing() -> None:
    engine = SlowToEncode()
    async with serving(engine) as service:
        long = Client(service, messages=LONG)
        assert engine.slow.began.wait(5)
        assert long.run is not None
        service.abort(long.run)
        engine.slow.go.set()
        assert (await Client(service, 2).answer()).status == 200
        assert (engine.stats().tokens, service.load().waiting) == (len(TEXT.encode()) + 1, 0)
        assert not long.frames


@pytest.mark.parametrize("engine", [SlowToEncode, ScriptedEngine])
async def test_what_can_not_fit_is_refused_before_it_is_encoded(engine: Any) -> None:
    async with serving(engine()) as service:
        client = Client(service, messages=[{"role": "user", "content": "a" * 1_000_000}])
        answer = await client.answer()
        assert answer.status == 400
        assert answer.error is not None
        assert (answer.error["param"], answer.error["code"]) == ("messages", "context_length_exceeded")


# ---- clocks and queues ----------------------------------------------------------------------------


async def test_a_process_that_stood_still_does_not_blame_its_engine() -> None:
    async with serving(Stuck(), hang_timeout=30.0) as service:
        Client(service)
        service.unhealthy()
        service._progress._looked_at -= 100  # as after SIGSTOP and SIGCONT
        assert service.unhealthy() is None
        for _ in range(20):
            service._progress._looked_at -= 2
            service.unhealthy()
        assert "no step" in (service.unhealthy() or ""), "many looks without a step do count"


async def test_an_item_that_raises_does_not_hold_back_those_behind_it() -> None:
    taken: list[int] = []

    def take(item: int) -> None:
        if item == 1:
            raise ValueError(item)
        taken.append(item)

    loop = asyncio.get_running_loop()
    raised: list[Any] = []
    loop.set_exception_handler(lambda loop, context: raised.append(context["exception"]))
    queue: LoopQueue[int] = LoopQueue(loop, take)
    for item in range(4):
        queue.put(item)
    async with asyncio.timeout(5):
        while len(taken) < 3:
            await asyncio.sleep(0)
    assert taken == [0, 2, 3]
    assert [type(error) for error in raised] == [ValueError]


# ---- ends of answers ------------------------------------------------------------------------------


async def test_a_stop_string_wins_over_the_length_that_it_just_fits() -> None:
    async with serving(CountingEngine()) as service:
        answer = await Client(service, stop=["two"], max_tokens=7).answer()
        assert (answer.text, answer.finishes, answer.usage["completion_tokens"]) == ("one ", ["stop"], 7)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_character_that_the_length_cuts_short_does_not_come_out(stream: bool) -> None:
    whole = TEXT[: TEXT.index("😀")]
    async with serving(CountingEngine()) as service:
        for more in (1, 2, 3):
            answer = await Client(service, max_tokens=len(whole) + more, stream=stream).answer()
            assert (answer.text, answer.finishes) == (whole, ["length"])
        answer = await Client(service, max_tokens=len(whole) + 4, stream=stream).answer()
        assert answer.text == whole + "😀"


@pytest.mark.parametrize("engine", [CountingEngine, ScriptedEngine])
@pytest.mark.parametrize(
    "fields", [{}, {"n": 3}, {"stop": ["four"]}, {"stop": ["oney"], "max_tokens": 2}, {"n": 2, "logprobs": True}], ids=str
)
@pytest.mark.parametrize("stream", [False, True])
async def test_frames_tell_of_every_token(engine: Any, fields: dict[str, Any], stream: bool) -> None:
    """Also of those whose text is held back, hidden, or comes in one body at the end."""
    options = {"stream_options": {"include_usage": True}} if stream else {}
    async with serving(engine(), slots=4) as service:
        client = Client(service, stream=stream, **options, **fields)
        answer = await client.answer()
        told = sum(frame.tokens for frame in client.frames if isinstance(frame, Data))
        assert told == answer.usage["completion_tokens"] == service.load().tokens
