"""Several prompts in one request, beyond what the engine kit checks: turns, aborts, errors, what of the prompts was cached."""

from __future__ import annotations

import queue
from typing import Any

import msgspec
import pytest

from xi_core.engine.base import ApiRequest, ApiSink, Engine, LoadedModel, Progress, SamplingParams, StepOutput
from xi_core.errors import ContextLengthExceeded, InvalidRequest
from xi_core.serving.request import COMPLETIONS
from xi_core.serving.tokens import LONG_BODY
from xi_core.testing.fakes import CountingEngine, ScriptedEngine
from xi_core.testing.harness import Answer, Harness, plan_for
from xi_core.wire.frames import Data
from xi_core.wire.plan import LaunchPlan


def serving(engine: Engine, **options: Any) -> Harness:
    harness = Harness(plan_for("xi_core.testing.fakes:CountingEngine", "", "fake", **options))
    harness.engine = engine
    return harness


def complete(harness: Harness, *prompts: Any, **fields: Any) -> Answer:
    return harness.submit(COMPLETIONS, {"prompt": list(prompts), "temperature": 0, **fields}).answer()


class Mute(ScriptedEngine):
    """Takes requests, and answers when the test tells it to."""

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        self.taken: queue.SimpleQueue[tuple[ApiRequest, ApiSink]] = queue.SimpleQueue()
        self.aborted: list[int] = []
        self.sinks: dict[int, ApiSink] = {}
        return super().load(plan, progress)

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        self.sinks[request.id] = sink
        self.taken.put((request, sink))

    def abort(self, id: int) -> None:
        self.aborted.append(id)
        self.sinks[id].done(id)

    def next(self, text: str = "x", prompt_tokens: int = 3) -> Any:
        """Answer the next request that was taken. Returns its prompt."""
        request, sink = self.taken.get(timeout=5)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1}
        choice = {"text": text, "finish_reason": "stop", "token_ids": [7], "prompt_token_ids": [1] * prompt_tokens}
        sink.event(request.id, msgspec.json.encode({"choices": [choice], "usage": usage}))
        sink.done(request.id)
        return request.body["prompt"]


def test_an_api_engine_gets_each_choice_by_itself() -> None:
    engine = Mute()
    with serving(engine, slots=2) as harness:
        call = harness.submit(COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "return_token_ids": True})
        assert [engine.next(str(number), 3 + number // 2) for number in range(4)] == ["a", "a", "b", "b"]
        answer = call.answer()
    assert [(choice["index"], choice["text"]) for choice in answer.body["choices"]] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert [len(choice["prompt_token_ids"]) for choice in answer.body["choices"]] == [3, 3, 4, 4]
    assert answer.usage == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}, "each prompt counts once"


def test_others_have_their_turn_between_two_prompts() -> None:
    engine = Mute()
    with serving(engine, slots=1) as harness:
        calls = [harness.submit(COMPLETIONS, {"prompt": prompts}) for prompts in (["a", "b", "c", "d"], "other")]
        assert [engine.next() for _ in range(5)] == ["a", "b", "other", "c", "d"]
        assert [call.answer().status for call in calls] == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_takes_all_prompts_along(stream: bool) -> None:
    engine = Mute()
    with serving(engine, slots=2) as harness:
        call = harness.submit(COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2, "stream": stream})
        load = harness.load()
        assert (load.running, load.waiting) == (2, 4)
        call.abort()
        harness.wait_idle()
        assert len(engine.aborted) == engine.taken.qsize() == 2
        assert call.frames.empty()


def test_a_token_engine_drops_all_prompts_too() -> None:
    engine = CountingEngine()
    with serving(engine, slots=2) as harness:
        call = harness.submit(COMPLETIONS, {"prompt": ["a"] * 9, "stream": True, "max_tokens": 400, "ignore_eos": True})
        call.first()
        call.abort()
        harness.wait_idle()
        assert (engine.stats().running, harness.service.busy) == (0, False)


# ---- errors ---------------------------------------------------------------------------------------


def refused(answer: Answer, param: str, code: str = InvalidRequest.code) -> str:
    assert answer.error is not None
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    message: str = answer.error["message"]
    return message


@pytest.mark.parametrize("size", [1, LONG_BODY])
def test_a_prompt_at_fault_is_found_before_any_has_begun(size: int) -> None:
    engine = CountingEngine()
    with serving(engine, context_length=2 * LONG_BODY) as harness:
        good = "x" * size
        assert refused(complete(harness, good, [1]), "prompt[1]")
        assert refused(complete(harness, [1] * size, [1, 999]), "prompt[1]") == "prompt[1]: token id 999 is outside the vocabulary of 257"
        assert refused(complete(harness, good, ""), "prompt[1]") == "prompt[1]: the prompt is empty"
        long = complete(harness, good, "x" * 2 * LONG_BODY, good)
        assert f"{2 * LONG_BODY} tokens" in refused(long, "prompt[1]", ContextLengthExceeded.code)
        assert "more than" in refused(complete(harness, [1] * size, [1] * 3 * LONG_BODY), "prompt[1]", ContextLengthExceeded.code)
        assert refused(complete(harness, good, good, logit_bias={"999": 1}), "logit_bias"), "it is no prompt's fault"
        assert engine.stats().tokens == 0
        assert refused(complete(harness, ""), "prompt"), "one prompt needs no number"


def test_what_an_engine_says_of_a_prompt_names_it() -> None:
    class Picky(CountingEngine):
        def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
            if prompt == [98]:
                raise InvalidRequest("prompt: not this one", param="prompt")
            super().add(id, prompt, sampling)

    with serving(Picky()) as harness:
        assert refused(complete(harness, "a", "b"), "prompt[1]") == "prompt[1]: not this one"
        harness.wait_idle()
    engine = Mute()
    with serving(engine, slots=2) as harness:
        call = harness.submit(COMPLETIONS, {"prompt": ["a", "b"]})
        engine.taken.get(timeout=5)
        request, sink = engine.taken.get(timeout=5)
        sink.failed(request.id, 400, "it is too long", "prompt", ContextLengthExceeded.code)
        assert refused(call.answer(), "prompt[1]", ContextLengthExceeded.code) == "prompt[1]: it is too long"
        harness.wait_idle()


def test_token_ids_are_not_given_back_where_their_text_is_not_known() -> None:
    with serving(ScriptedEngine()) as harness:
        assert complete(harness, "a", echo=True, max_tokens=3).text == "aone"
        assert "token ids" in refused(complete(harness, [1], [2], echo=True), "echo", "unsupported_field")


# ---- counts ---------------------------------------------------------------------------------------


class Caching(CountingEngine):
    """Tells of each sequence how much was cached: as many tokens as it is the id of."""

    def step(self) -> StepOutput:
        output = super().step()
        for token in output.tokens:
            token.cached = token.id
        return output


def test_cached_tokens_are_those_of_all_prompts() -> None:
    """Of several choices of one prompt those count that none of them had to read: 1 of the ids 1 and 2, 3 of the ids 3 and 4."""
    with serving(Caching()) as harness:
        answer = complete(harness, "a", "b", n=2, max_tokens=2)
    assert answer.body["usage"]["prompt_tokens_details"] == {"cached_tokens": 1 + 3}


@pytest.mark.parametrize("engine", [CountingEngine, ScriptedEngine])
@pytest.mark.parametrize("stream", [False, True])
def test_frames_tell_of_every_token_of_every_prompt(engine: Any, stream: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    with serving(engine()) as harness:
        answer = complete(harness, "abc", "def", "ghi", n=2, max_tokens=5, **options)
        told = sum(frame.tokens for frame in answer.frames if isinstance(frame, Data))
        assert told == answer.usage["completion_tokens"] == harness.load().tokens == 30
        assert answer.usage["prompt_tokens"] == 9
