"""How the engine `llama-cpp-python` chooses tokens: shares of many draws, log-probabilities, rows beside each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from xi_core.engine.base import SamplingParams
from xi_core.errors import EngineError
from xi_plugins.engines.llama_cpp.llama_cpp_python.sampling import Floats, RowSampler, sample, token_logprobs

SHARES = [0.4, 0.3, 0.15, 0.1, 0.05]
LOGITS: Floats = np.log(np.array(SHARES, dtype=np.float32))


class Fixed:
    """A grammar that always allows the same tokens."""

    def __init__(self, *tokens: int) -> None:
        self.accepted: list[int] = []
        self._mask = sum(1 << token for token in tokens).to_bytes(1, "little")

    def allowed(self) -> bytes:
        if not any(self._mask):
            raise EngineError("too hard")
        return self._mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def row(prompt: list[int], answer: list[int], size: int = 5, grammar: Any = None, **fields: Any) -> RowSampler:
    sampler = RowSampler(SamplingParams(max_tokens=1, **fields), prompt, size, grammar)
    for token in answer:
        sampler.accept(token)
    return sampler


def shares(logits: Floats, count: int = 4000, **fields: Any) -> list[float]:
    """How often each token comes out, of many draws."""
    rows = [row([0, 0], [1, 1], logits.size, seed=seed, **fields) for seed in range(count)]
    tokens, _ = sample(np.repeat(logits[None], count, axis=0), rows)
    return [float(share) for share in np.bincount(np.array(tokens), minlength=logits.size) / count]


def of(weights: list[float]) -> Any:
    return pytest.approx([weight / sum(weights) for weight in weights], abs=0.03)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, SHARES),
        ({"temperature": 0.5}, [0.16, 0.09, 0.0225, 0.01, 0.0025]),
        ({"temperature": 0}, [1, 0, 0, 0, 0]),
        ({"temperature": 2e-5}, [1, 0, 0, 0, 0]),
        ({"top_k": 2}, [0.4, 0.3, 0, 0, 0]),
        ({"top_k": 50}, SHARES),
        ({"top_p": 0.6}, [0.4, 0.3, 0, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.0}, [1, 0, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.8}, [0.4, 0.3, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.83}, [0.4, 0.3, 0.15, 0, 0]),
        ({"min_p": 0.3}, [0.4, 0.3, 0.15, 0, 0]),
        ({"min_p": 0.3, "top_k": 2}, [0.4, 0.3, 0, 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0, 0]),
        ({"logit_bias": {4: math.log(8)}}, [0.4, 0.3, 0.15, 0.1, 0.4]),
        ({"presence_penalty": math.log(2)}, [0.4, 0.15, 0.15, 0.1, 0.05]),
        ({"frequency_penalty": math.log(2)}, [0.4, 0.075, 0.15, 0.1, 0.05]),
        ({"repetition_penalty": 2.0}, [0.16, 0.09, 0.15, 0.1, 0.05]),
        ({"grammar": Fixed(1, 3)}, [0, 0.3, 0, 0.1, 0]),
        ({"grammar": Fixed(1, 3), "logit_bias": {0: 100.0}, "top_p": 0.7}, [0, 1, 0, 0, 0]),
    ],
)
def test_shares_are_what_the_fields_say(fields: dict[str, Any], weights: list[float]) -> None:
    assert shares(LOGITS, **fields) == of(weights)


def test_a_large_vocabulary_is_cut_as_a_small_one() -> None:
    """What is looked at first are some candidates: for a flat distribution they must become all."""
    size = 3000
    flat = np.zeros(size, np.float32)
    found = np.array(shares(flat, count=3000, top_p=0.5))
    assert found[:1500].sum() == pytest.approx(1.0), "of equals the first"
    assert found[750:1500].sum() == pytest.approx(0.5, abs=0.04)
    assert np.array(shares(flat, count=2000, top_k=100))[:].astype(bool).sum() <= 100
    peaked = flat.copy()
    peaked[[7, 2000]] = [20.0, 20.0 + math.log(3)]
    found = np.array(shares(peaked, count=2000, top_p=0.9))
    assert (found[7], found[2000]) == (pytest.approx(0.25, abs=0.04), pytest.approx(0.75, abs=0.04))
    assert shares(peaked, count=100, top_p=0.9, top_k=1500)[2000] > 0.5


def test_rows_of_a_batch_keep_their_own_fields() -> None:
    fields: list[dict[str, Any]] = [
        {"temperature": 0}, {"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}, {"logit_bias": {4: 100.0}}, {"temperature": 0, "grammar": Fixed(2)},
    ]  # fmt: skip
    tokens, logprobs = sample(np.repeat(LOGITS[None], len(fields), axis=0), [row([0], [], **each) for each in fields])
    assert tokens == [0, 0, 0, 0, 4, 2]
    assert logprobs == {}


def test_seeds_repeat_whatever_is_beside_them() -> None:
    def draws(seed: int | None, others: int) -> list[int | None]:
        rows = [row([0], [], seed=seed), *(row([0], [], top_k=3) for _ in range(others))]
        return [sample(np.repeat(LOGITS[None], len(rows), axis=0), rows)[0][0] for _ in range(40)]

    assert draws(5, 0) == draws(5, 7)
    assert draws(1, 0) != draws(-1, 0)
    assert draws(None, 0) != draws(None, 0)


def test_logits_are_left_as_they_were() -> None:
    logits = LOGITS[None].copy()
    sample(logits, [row([0], [1], repetition_penalty=2.0, logit_bias={1: 5.0}, presence_penalty=1.0)])
    assert (logits[0] == LOGITS).all()


@pytest.mark.parametrize("fields", [{"temperature": 0}, {}, {"top_p": 0.5}])
def test_numbers_that_are_not_finite_give_no_token(fields: dict[str, Any]) -> None:
    logits = np.repeat(LOGITS[None], 3, axis=0)
    logits[1, 2] = math.nan
    rows = [row([0], [], seed=1, logprobs=1, **fields) for _ in range(3)]
    tokens, logprobs = sample(logits, rows)
    assert tokens[1] is None
    assert None not in (tokens[0], tokens[2])
    assert set(logprobs) == {0, 2}
    assert "not finite" in rows[1].failure.message


def test_a_grammar_that_fails_says_why() -> None:
    failing = row([0], [], grammar=Fixed())
    assert sample(LOGITS[None], [failing])[0] == [None]
    assert failing.failure.message == "too hard"


def test_grammars_hear_of_the_tokens() -> None:
    grammar = Fixed(1)
    row([0], [1, 1], grammar=grammar)
    assert grammar.accepted == [1, 1]


def test_logprobs_are_the_models_own_whatever_shapes_the_draw() -> None:
    fields: dict[str, Any] = {"logit_bias": {4: 100.0}, "repetition_penalty": 2.0, "top_k": 1, "logprobs": 2}
    tokens, logprobs = sample(LOGITS[None] + 3, [row([0], [], **fields)])
    assert tokens == [4]
    assert logprobs[0].logprob == pytest.approx(math.log(0.05), abs=1e-5)
    assert [id for id, _ in logprobs[0].top] == [0, 1]
    assert [value for _, value in logprobs[0].top] == pytest.approx([math.log(0.4), math.log(0.3)], abs=1e-5)


def test_alternatives_come_likeliest_first() -> None:
    logits = np.array([-1.0, -3.0, -1.0, -2.0], dtype=np.float32)
    assert [id for id, _ in token_logprobs(logits, 3, 3).top] == [0, 2, 3]
    assert [id for id, _ in token_logprobs(logits, 3, 1).top] == [0]
    assert [id for id, _ in token_logprobs(logits, 3, 9).top] == [0, 2, 3, 1]
    assert token_logprobs(logits, 1, 0).top == []
