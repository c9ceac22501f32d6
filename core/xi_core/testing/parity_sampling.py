"""Checks of `ParityKit` on sampling: log-probabilities equal the reference, and each field of a request does what it is for."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from xi_core.testing.harness import Harness
from xi_core.testing.parity_base import ParityBase
from xi_core.testing.proofs import proves

PAIR = {"question": "Who are you?", "first": "P", "second": "k", "bias": {"47": 100, "74": 100}}
"""Two tokens that, both biased, follow this question as "PP" by a margin of 1.05, so that any penalty makes "Pk" of it."""


class SamplingParity(ParityBase):
    """By the fixture `numbers`."""

    logprob_tolerance: ClassVar[float] = 1e-3
    """Largest difference to the reference, in nats: what the engine's precision makes."""
    logprobs_by_character: ClassVar[bool] = False
    """Whether tokens that make one character together are told as one."""

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
