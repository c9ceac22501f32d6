"""`ParityKit`: `EngineKit` with a reference. Every engine that runs the demo model xi-tiny passes this one body and so answers alike.

The reference comes by two fixtures: `expected` (prompts, greedy answers, token ids and tool calls of xi-tiny) and `numbers`
(log-probabilities of its answers); `training/xi_tiny` has the scripts that wrote both with transformers in f32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from xi_core.serving.request import CHAT
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import Answer, Call, Harness
from xi_core.testing.proofs import proves
from xi_core.wire.frames import Data, End, Frame, Open

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""xi-tiny's chat template, for one question."""
COMPLETION_PROMPTS = tuple(TURN.format(prompt) for prompt in EngineKit.prompts)
"""`prompts` of a class whose `route` is completions."""
PAIR = {"question": "Who are you?", "first": "P", "second": "k", "bias": {"47": 100, "74": 100}}
"""Two tokens that, both biased, follow this question as "PP" by a margin of 1.05, so that any penalty makes "Pk" of it."""
END_OF_TURN = "1021"
"""xi-tiny's end token."""
SCRIPTS = ["👨‍👩‍👧‍👦 🇫🇷🇯🇵", "你好，世界。", "naïve Ελλάδα 🏳️‍🌈"]


class ParityKit(EngineKit):
    """Set `plugin` and `plan`, one that runs xi-tiny with its tool parser; `route` and `prompts` for completions."""

    runs = 100
    logprob_tolerance: ClassVar[float] = 1e-3
    """Largest difference to the reference, in nats: what the engine's precision makes."""
    logprobs_by_character: ClassVar[bool] = False
    """Whether tokens that make one character together are told as one."""
    chunked: ClassVar[dict[str, Any]]
    """Options under which prompts are read in parts of at most `chunk` tokens."""
    chunk: ClassVar[int] = 32

    @pytest.fixture(scope="class")
    @classmethod
    def in_chunks(cls) -> Iterator[Harness]:
        with Harness(replace(cls.plan, options={**cls.plan.options, **cls.chunked})) as harness:
            yield harness

    def question(self, prompt: str) -> str:
        """A question in the route's form."""
        return prompt if self.route == CHAT else TURN.format(prompt)

    def seeded(self, harness: Harness, seed: int) -> dict[str, Any]:
        """A seed, where the engine takes one."""
        return {"seed": seed} if self.claims(harness, "seed") else {}

    # -- greedy ------------------------------------------------------------------------------------

    def check_fact(self, fact: dict[str, Any], answer: Answer) -> None:
        """Whether an answer is the expected one, token by token where the engine tells tokens."""
        assert answer.status == 200, answer.raw
        assert (answer.text, answer.finishes) == (fact["answer"], ["stop"])
        assert answer.usage["prompt_tokens"] == len(fact["prompt_ids"])
        assert answer.usage["completion_tokens"] == len(fact["answer_ids"])

    def test_facts_alone(self, harness: Harness, expected: dict[str, Any]) -> None:
        ids = {"return_token_ids": True} if self.claims(harness, "return_token_ids") else {}
        for fact in expected["chat"]:
            answer = self.ask(harness, self.question(fact["prompt"]), temperature=0, max_tokens=200, **ids)
            self.check_fact(fact, answer)
            if ids:
                assert (answer.prompt_token_ids, answer.token_ids) == (fact["prompt_ids"], fact["answer_ids"])

    @pytest.mark.parametrize("stream", [False, True])
    def test_facts_at_once(self, harness: Harness, expected: dict[str, Any], stream: bool) -> None:
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "stream": stream}
        fields |= {"stream_options": {"include_usage": True}} if stream else {}
        calls = [(fact, self.start(harness, self.question(fact["prompt"]), **fields)) for fact in expected["chat"]]
        for fact, call in calls:
            self.check_fact(fact, call.answer(120.0))

    # -- text --------------------------------------------------------------------------------------

    @proves("stop")
    def test_stops_across_tokens(self, harness: Harness, numbers: dict[str, Any]) -> None:
        self.supports(harness, "stop")
        for measured in numbers["answers"]:
            tokens, whole = measured["tokens"], "".join(measured["tokens"])
            stops = [left[-1] + right[0] for left, right in pairwise(tokens)] if "\ufffd" not in whole else []
            for number, stop in enumerate(stops[:6]):
                answer = self.ask(harness, self.question(measured["prompt"]), temperature=0, stop=stop, stream=bool(number % 2))
                assert (answer.text, answer.finishes) == (whole[: whole.index(stop)], ["stop"]), stop

    def test_scripts_and_emoji(self, harness: Harness, expected: dict[str, Any]) -> None:
        """Characters of several tokens come whole, and nothing comes of one that `max_tokens` cuts."""
        facts = [fact for fact in expected["chat"] if not fact["answer"].isascii()]
        assert facts
        for fact in facts:
            question = self.question(fact["prompt"])
            assert self.pieces(self.start(harness, question, temperature=0, stream=True)) == fact["answer"]
            for most in range(1, min(len(fact["answer_ids"]), 12)):
                cut = self.pieces(self.start(harness, question, temperature=0, stream=True, max_tokens=most))
                assert fact["answer"].startswith(cut)

    @proves("structured_outputs")
    def test_scripts_and_emoji_that_are_forced(self, harness: Harness) -> None:
        self.supports(harness, "structured_outputs")
        for text in SCRIPTS:
            fields = {"structured_outputs": {"choice": [text]}, "max_tokens": 200}
            assert self.pieces(self.start(harness, self.prompts[0], stream=True, **fields)) == text

    def pieces(self, call: Call) -> str:
        """A stream's text, whose every event holds whole characters."""
        answer = call.answer()
        assert answer.status == 200, answer.raw
        for event in answer.events:
            assert "\ufffd" not in str(event.get("choices"))
        return answer.text if answer.texts else ""

    # -- sampling ----------------------------------------------------------------------------------

    @proves("logprobs")
    def test_logprobs_equal_the_reference(self, harness: Harness, numbers: dict[str, Any]) -> None:
        self.supports(harness, "logprobs")
        for measured in numbers["answers"]:
            if self.logprobs_by_character and "\ufffd" in "".join(measured["tokens"]):
                continue
            ask = {"temperature": 0, "max_tokens": len(measured["tokens"]), **self.with_logprobs(len(measured["likeliest"][0]))}
            entries = self.ask(harness, self.question(measured["prompt"]), **ask).logprobs
            assert len(entries) == len(measured["tokens"])
            for entry, logprob, likeliest in zip(entries, measured["logprobs"], measured["likeliest"], strict=True):
                assert entry["logprob"] == pytest.approx(logprob, abs=self.logprob_tolerance)
                found = sorted((one["logprob"] for one in entry["top_logprobs"]), reverse=True)
                if len(found) == len(likeliest):  # completions tell them by text, which bytes of characters have in common
                    assert found == pytest.approx(likeliest, abs=self.logprob_tolerance)

    @proves("temperature")
    def test_heat_changes_answers(self, harness: Harness) -> None:
        self.supports(harness, "temperature")
        assert len(self.hot(harness)) > 1

    @proves("top_k")
    def test_top_k(self, harness: Harness) -> None:
        self.narrowed(harness, "top_k", 1)

    @proves("top_p")
    def test_top_p(self, harness: Harness) -> None:
        self.narrowed(harness, "top_p", 0.001)

    @proves("min_p")
    def test_min_p(self, harness: Harness) -> None:
        self.narrowed(harness, "min_p", 1.0)

    def hot(self, harness: Harness, **fields: Any) -> set[str]:
        """Answers to one question at temperature 2."""
        base: dict[str, Any] = {"temperature": 2, "max_tokens": 16, "ignore_eos": True, **fields}
        calls = [self.start(harness, self.prompts[-1], **base, **self.seeded(harness, seed)) for seed in range(8)]
        return {call.answer().text for call in calls}

    def narrowed(self, harness: Harness, name: str, value: float) -> None:
        """A field that leaves only the likeliest token makes hot answers greedy."""
        self.supports(harness, name)
        greedy = self.ask(harness, self.prompts[-1], temperature=0, max_tokens=16, ignore_eos=True).text
        assert self.hot(harness, **{name: value}) == {greedy}

    @proves("presence_penalty")
    def test_presence_penalty(self, harness: Harness) -> None:
        self.penalised(harness, "presence_penalty", 2)

    @proves("frequency_penalty")
    def test_frequency_penalty(self, harness: Harness) -> None:
        self.penalised(harness, "frequency_penalty", 2)

    @proves("repetition_penalty")
    def test_repetition_penalty(self, harness: Harness) -> None:
        self.penalised(harness, "repetition_penalty", 10)

    def penalised(self, harness: Harness, name: str, value: float) -> None:
        """Of two tokens that are all that can come, a penalty takes the second after the first."""
        self.supports(harness, name, "logit_bias")
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "logit_bias": PAIR["bias"]}
        question = self.question(str(PAIR["question"]))
        assert self.ask(harness, question, **fields).text == f"{PAIR['first']}{PAIR['first']}"
        assert self.ask(harness, question, **fields, **{name: value}).text == f"{PAIR['first']}{PAIR['second']}"

    # -- tools -------------------------------------------------------------------------------------

    def with_tools(self, harness: Harness, expected: dict[str, Any], case: dict[str, Any], **fields: Any) -> Answer:
        """Ask a question beside the tools of its case."""
        messages = case.get("messages") or [{"role": "user", "content": case["prompt"]}]
        tools = [expected["tool_definitions"][name] for name in case["tools"]]
        return harness.chat(messages, tools=tools, temperature=0, **fields)

    @proves("tools")
    @pytest.mark.parametrize("stream", [False, True])
    def test_tool_round_trip(self, harness: Harness, expected: dict[str, Any], stream: bool) -> None:
        self.supports(harness, "tools")
        for case in expected["tools"][::3]:
            answer = self.with_tools(harness, expected, case, stream=stream)
            assert (called(answer), answer.finishes) == (case["calls"], ["tool_calls"])
        for case in expected["follow_ups"][::3]:
            answer = self.with_tools(harness, expected, case, stream=stream)
            assert (answer.text, answer.finishes) == (case["answer"], ["stop"])

    @proves("tool_choice")
    @pytest.mark.parametrize("choice", ["none", "auto", "required", "named"])
    def test_tool_choice(self, harness: Harness, expected: dict[str, Any], choice: str) -> None:
        self.supports(harness, "tools", "tool_choice")
        values = harness.model.manifest.endpoints[self.route]["tool_choice"].values
        for case in expected["tools"][::8]:
            name = case["calls"][0]["name"]
            given = {"type": "function", "function": {"name": name}} if choice == "named" else choice
            answer = self.with_tools(harness, expected, case, tool_choice=given, max_tokens=100)
            if values and choice not in values:
                assert (answer.status, (answer.error or {})["param"]) == (400, "tool_choice")
            elif choice == "none":
                assert not called(answer)
            else:
                assert called(answer) == case["calls"]

    @proves("parallel_tool_calls")
    def test_one_call_at_most(self, harness: Harness, expected: dict[str, Any]) -> None:
        self.supports(harness, "parallel_tool_calls", "tool_choice", "logit_bias")
        unending: dict[str, Any] = {"tool_choice": "required", "logit_bias": {END_OF_TURN: -100}, "max_tokens": 100}
        for case in expected["tools"][::16]:
            assert called(self.with_tools(harness, expected, case, **unending, parallel_tool_calls=False)) == case["calls"]
            assert len(self.with_tools(harness, expected, case, **unending).tool_calls) > 1, "it would call again"

    # -- a long prompt -----------------------------------------------------------------------------

    def test_a_long_prompt_stalls_nobody(self, in_chunks: Harness) -> None:
        """While it is read, each request that runs gets about a token per part."""
        parts = 600 // self.chunk
        fields: dict[str, Any] = {"temperature": 0, "stream": True, "ignore_eos": True}
        short = [self.start(in_chunks, self.prompts[-1], max_tokens=400, **fields) for _ in range(3)]
        for call in short:
            assert isinstance(call.first(), Open)
            assert isinstance(call.first(), Data)
        trace: list[Frame] = []
        in_chunks.trace = trace
        long = self.start(in_chunks, self.question("the " * 600), max_tokens=2, **fields)
        assert isinstance(long.first(), Open)
        before = trace[: next(place for place, frame in enumerate(trace) if frame.id == long.id)]
        for call in short:
            assert not any(isinstance(frame, End) for frame in before), "they run longer than the prompt takes to read"
            # Engines that tell only at the end how many tokens there were send an event for each.
            tokens = sum(frame.tokens or 1 for frame in before if isinstance(frame, Data) and frame.id == call.id)
            assert tokens >= parts // 2, f"{tokens} tokens while {parts} parts were read"
            call.abort()
        while not isinstance(frame := long.first(), End):
            pass
        assert frame.finish == "length"


def called(answer: Answer) -> list[dict[str, Any]]:
    """The calls of an answer's first choice, their arguments decoded."""
    assert answer.status == 200, answer.raw
    return [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in answer.tool_calls]
