"""Grammars in the sampler: only rows that have one pay, and one that fails costs its own row only."""

import pytest

torch = pytest.importorskip("torch")

from xi_core.engine.base import SamplingParams  # noqa: E402
from xi_core.errors import InvalidRequest  # noqa: E402
from xi_plugins.engines.transformers.sampling import RowSampler, sample  # noqa: E402

SIZE = 11
CPU = torch.device("cpu")


class Only:
    """Stands for a `Matcher` that allows some tokens; none means that it has failed."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens
        self.accepted: list[int] = []

    def allowed(self) -> bytes:
        if not self.tokens:
            raise InvalidRequest("too complex", param="p")
        return sum(1 << token for token in self.tokens).to_bytes(2, "little")

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def row(*tokens: int, bound: bool = True, **params: object) -> RowSampler:
    grammar: object = Only(*tokens) if bound else None
    return RowSampler(SamplingParams(max_tokens=5, **params), [0], SIZE, CPU, grammar)


def test_only_allowed_tokens_are_chosen() -> None:
    logits = torch.linspace(5, -5, SIZE).repeat(6, 1)
    rows = [
        row(3, 9, temperature=0),
        row(bound=False, temperature=0),
        row(10, temperature=1.5, seed=1),
        row(4, 5, temperature=1, top_k=1),
        row(6, 7, temperature=1, top_p=0.1, min_p=0.5, seed=2),
        row(8, temperature=0, logit_bias={0: 100.0}, repetition_penalty=2.0),
    ]
    tokens, _ = sample(logits, rows)
    assert tokens == [3, 0, 10, 4, 6, 8]


def test_logprobs_are_the_models_own() -> None:
    logits = torch.linspace(5, -5, SIZE).repeat(1, 1)
    tokens, logprobs = sample(logits, [row(10, temperature=0, logprobs=1)])
    assert tokens == [10]
    assert logprobs[0].logprob == pytest.approx(float(logits.log_softmax(-1)[0, 10]))
    assert logprobs[0].top[0][0] == 0


def test_a_grammar_that_fails_costs_its_row_only() -> None:
    logits = torch.linspace(5, -5, SIZE).repeat(3, 1)
    rows = [row(2, temperature=0), row(temperature=1), row(bound=False, temperature=1, seed=3)]
    tokens, _ = sample(logits, rows)
    assert tokens[0] == 2
    assert tokens[1] is None
    assert tokens[2] is not None
    assert (rows[1].failure.message, rows[1].failure.status, rows[1].failure.param) == ("too complex", 400, "p")


def test_chosen_tokens_are_told_to_the_grammar() -> None:
    bound = row(2, temperature=0)
    bound.accept(2)
    assert isinstance(bound.grammar, Only)
    assert bound.grammar.accepted == [2]
