"""The part of `EngineKit` about choosing tokens: seeds, log-probabilities, biases."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.testing.harness import Harness
from xi_core.testing.kit_base import KitBase
from xi_core.testing.proofs import proves


class SamplingChecks(KitBase):
    """How tokens are chosen."""

    @proves("seed", "temperature")
    def test_seed_repeats_alone(self, harness: Harness) -> None:
        self.supports(harness, "seed", "temperature")
        fields: dict[str, Any] = {"temperature": 1.5, "max_tokens": 24, "ignore_eos": True}
        texts = [self.ask(harness, self.prompts[0], seed=seed, **fields).text for seed in range(4)]
        assert [self.ask(harness, self.prompts[0], seed=seed, **fields).text for seed in range(4)] == texts
        assert len(set(texts)) > 1, "seeds differ"

    @proves("seed")
    def test_seed_repeats_beside_others(self, harness: Harness) -> None:
        self.supports(harness, "seed", "temperature", "n")
        if harness.model.manifest.endpoints[self.route]["seed"].state == "limited":
            pytest.skip("the manifest claims seeds for requests that run alone")
        fields: dict[str, Any] = {"temperature": 1.5, "max_tokens": 24, "ignore_eos": True, "n": 4}
        first = self.ask(harness, self.prompts[0], seed=7, **fields)
        others = [self.start(harness, self.prompts[1], seed=3, **fields) for _ in range(2)]
        again = self.ask(harness, self.prompts[0], seed=7, **fields)
        for other in others:
            other.answer()
        assert again.texts == first.texts, "the same seed, beside other requests"
        assert len(set(first.texts)) > 1, "choices of one request differ"
        assert self.ask(harness, self.prompts[0], seed=8, **fields).texts != first.texts

    @proves("temperature")
    def test_the_smallest_temperatures_are_greedy(self, harness: Harness) -> None:
        """Divided by them, logits overflow."""
        self.supports(harness, "temperature")
        greedy = self.ask(harness, self.prompts[0], temperature=0, max_tokens=8).text
        texts = [self.ask(harness, self.prompts[0], temperature=value, max_tokens=8).text for value in (1e-6, 1e-38, 1e-44, 1e-300)]
        assert texts == [greedy] * 4

    @proves("logprobs")
    def test_logprobs(self, harness: Harness) -> None:
        self.supports(harness, "logprobs")
        for stream in (False, True):
            answer = self.ask(harness, self.prompts[0], temperature=0, stream=stream, **self.with_logprobs(2))
            assert answer.logprobs, "entries come"
            assert "".join(entry["token"] for entry in answer.logprobs) == answer.text or "\ufffd" in str(answer.logprobs)
            for entry in answer.logprobs:
                assert entry["logprob"] <= 0
                assert len(entry["top_logprobs"]) == 2
                assert entry["top_logprobs"][0]["token"] == entry["token"], "greedy takes the likeliest"
        bare = self.ask(harness, self.prompts[0], temperature=0, **self.with_logprobs(0))
        assert all(entry["top_logprobs"] == [] for entry in bare.logprobs)

    @proves("logit_bias")
    def test_logit_bias(self, harness: Harness) -> None:
        self.supports(harness, "logit_bias", "max_tokens", "logprobs")
        answer = self.ask(harness, self.prompts[0], temperature=0, logit_bias={"65": 100}, max_tokens=3, **self.with_logprobs(1))
        assert len({entry["token"] for entry in answer.logprobs}) == 1, "one token, wherever it was biased to"
