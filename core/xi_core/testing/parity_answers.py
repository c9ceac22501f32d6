"""Checks of `ParityKit` on greedy answers and their text: they equal the reference, and characters come whole."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from xi_core.api.openai import MAX_TOTAL_CHOICES
from xi_core.serving.request import CHAT, COMPLETIONS
from xi_core.testing.harness import Answer, Call, Harness
from xi_core.testing.parity_base import ParityBase
from xi_core.testing.proofs import proves

SCRIPTS = ["👨‍👩‍👧‍👦 🇫🇷🇯🇵", "你好，世界。", "naïve Ελλάδα 🏳️‍🌈"]


class AnswerParity(ParityBase):
    """By the fixtures `expected` and `numbers`."""

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

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("ids", [False, True])
    def test_facts_in_one_request(self, harness: Harness, expected: dict[str, Any], stream: bool, ids: bool) -> None:
        """All questions as prompts of one request, twice each, as texts or as token ids."""
        if self.route == CHAT:
            return  # a chat has one prompt
        facts = expected["chat"][: MAX_TOTAL_CHOICES // 2]
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "n": 2, "stream": stream}
        fields |= {"stream_options": {"include_usage": True}} if stream else {}
        prompts = [fact["prompt_ids"] if ids else self.question(fact["prompt"]) for fact in facts]
        answer = harness.submit(COMPLETIONS, {"prompt": prompts, **fields}).answer(120.0)
        assert answer.status == 200, answer.raw
        assert answer.texts == [fact["answer"] for fact in facts for _ in range(2)]
        assert answer.finishes == ["stop"] * 2 * len(facts)
        assert answer.usage["prompt_tokens"] == sum(len(fact["prompt_ids"]) for fact in facts)
        assert answer.usage["completion_tokens"] == 2 * sum(len(fact["answer_ids"]) for fact in facts)

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
