"""Services beyond what the engine kit checks: queues, failures, draining, broken events."""

import asyncio
import json
import threading
from typing import Any

import pytest
from service_clients import Client, Mute, Stuck, serving

from xi_core.engine.base import ApiRequest, ApiSink, EngineStats, LoadedModel, Progress, StepOutput
from xi_core.testing.fake_plugin import full_manifest
from xi_core.testing.fakes import CountingEngine
from xi_core.wire.frames import Data, Open
from xi_core.wire.manifest import no
from xi_core.wire.plan import LaunchPlan

ENDLESS = {"stream": True, "ignore_eos": True, "max_tokens": 400, "logit_bias": {"65": 1}}


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


class Breaks(CountingEngine):
    """After some steps, of which the first waits until all have asked."""

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        self.asked = threading.Event()
        return super().load(plan, progress)

    def step(self) -> StepOutput:
        self.asked.wait(5)
        if self.stats().steps > 5:
            raise RuntimeError("CUDA out of memory")
        return super().step()


async def test_an_engine_that_breaks_ends_its_requests_and_the_service() -> None:
    engine = Breaks()
    async with serving(engine) as service:
        streamed, waiting, twice = Client(service, 1, **ENDLESS), Client(service, 2), Client(service, 3, n=2)
        engine.asked.set()
        answer = await streamed.answer()
        assert answer.status == 200
        assert answer.error is not None
        assert "CUDA out of memory" in answer.error["message"]
        assert b"[DONE]" not in answer.raw
        assert (await waiting.answer()).status == 503, "it had no part in that, and another replica may serve it"
        assert (await twice.answer()).status == 503
        assert service.failure is not None
        assert service.unhealthy()
        assert (await Client(service, 4).answer()).status == 503


async def test_a_request_of_which_a_part_ran_when_the_engine_broke_is_not_tried_elsewhere() -> None:
    """It may be what broke it."""
    engine = Breaks()
    async with serving(engine) as service:
        client = Client(service, 1, n=2, **(ENDLESS | {"stream": False}))
        engine.asked.set()
        answer = await client.answer()
        assert answer.status == 500
        assert answer.error is not None
        assert "CUDA out of memory" in answer.error["message"]


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


async def test_what_a_model_recommends_counts_where_a_request_leaves_it_open() -> None:
    class Recommending(Mute):
        def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
            loaded = super().load(plan, progress)
            loaded.sampling = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
            loaded.manifest.endpoints["/v1/chat/completions"]["repetition_penalty"] = no("it has none")
            return loaded

        def submit(self, request: ApiRequest, sink: ApiSink) -> None:
            super().submit(request, sink)
            bodies.append(request.body)

    bodies: list[dict[str, Any]] = []
    async with serving(Recommending(), slots=2) as service:
        Client(service, 1, temperature=None)
        Client(service, 2, temperature=0.1, top_k=0)
        asked = [(body["temperature"], body["top_k"], body["top_p"], body["repetition_penalty"]) for body in bodies]
    assert asked == [(0.6, 20, 1.0, 1.0), (0.1, 0, 1.0, 1.0)], "and nothing that this engine can't honour"


async def test_a_refusal_for_now_says_when_to_come_back() -> None:
    engine = Mute()
    async with serving(engine) as service:
        client = Client(service)
        engine.sink.failed(engine.taken[0], 503, "its server has died", code="unavailable")
        assert (await client.answer()).status == 503
    assert isinstance(client.frames[0], Open)
    assert client.frames[0].retry_after == 1.0


@pytest.mark.parametrize(("given", "kept"), [("call_" + "0a" * 12, False), ("chatcmpl-tool-" + "0a" * 16, False), ("functions.f:0", True)])
async def test_ids_of_calls_that_a_server_has_made_up_are_xis_own(given: str, kept: bool) -> None:
    call = {"index": 0, "id": given, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    event = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    engine = Mute()
    async with serving(engine) as service:
        client = Client(service)
        engine.sink.event(engine.taken[0], json.dumps(event).encode())
        engine.sink.done(engine.taken[0])
        answer = await client.answer()
    (told,) = json.loads(answer.raw)["choices"][0]["message"]["tool_calls"]
    assert (told["id"] == given) is kept
    assert kept or len(told["id"]) == 9


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
