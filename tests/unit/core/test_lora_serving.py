"""LoRA modules in the serving layer: a request names one as its model, the engine is told, and the answer carries the name."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.engine.base import ApiRequest, ApiSink, SamplingParams
from xi_core.testing.fakes import CountingEngine, ScriptedEngine
from xi_core.testing.harness import Harness, plan_for
from xi_core.wire.plan import LoraModule

SEEN: list[str | None] = []


class TellingTokenEngine(CountingEngine):
    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        SEEN.append(sampling.adapter)
        super().add(id, prompt, sampling)


class TellingApiEngine(ScriptedEngine):
    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        SEEN.append(request.adapter)
        super().submit(request, sink)


@pytest.mark.parametrize("engine", [TellingTokenEngine, TellingApiEngine])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("model", "adapter"), [("sql", "sql"), ("base", None), ("anything", None)])
def test_the_model_that_a_request_names(engine: Any, stream: bool, model: str, adapter: str | None) -> None:
    plan = plan_for("xi_core.testing.fakes:CountingEngine", "", "fake", name="base")
    plan.lora_modules = [LoraModule(name="sql", path="/sql"), LoraModule(name="law", path="/law")]
    SEEN.clear()
    harness = Harness(plan)
    harness.engine = engine()
    with harness:
        answer = harness.chat("Hi", model=model, stream=stream, n=2, max_tokens=3)
    assert answer.status == 200, answer.raw
    assert [adapter, adapter] == SEEN
    assert {event["model"] for event in answer.events or [answer.body]} == {adapter or "base"}
