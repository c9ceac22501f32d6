"""Sampling of the engine `transformers`, against plain reference implementations."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from xi_core.engine.base import SamplingParams  # noqa: E402
from xi_plugins.engines.transformers import sampling  # noqa: E402
from xi_plugins.engines.transformers.sampling import RowSampler, sample  # noqa: E402

SIZE = 50
CPU = torch.device("cpu")


def row(prompt: list[int] | None = None, size: int = SIZE, **fields: Any) -> RowSampler:
    return RowSampler(SamplingParams(max_tokens=9, **fields), prompt or [1, 2, 3], size, CPU)


def random_logits(rows: int, seed: int = 0, size: int = SIZE) -> Any:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def reference_shares(logits: list[float], params: SamplingParams) -> list[float]:
    """The distribution that a token is drawn from, by the words of `SamplingParams`."""
    scaled = [value / params.temperature for value in logits]
    top = max(scaled)
    shares = [math.exp(value - top) for value in scaled]
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    if params.top_k > 0:
        order = order[: params.top_k]
    total = sum(shares[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        if params.top_p < 1 and reached >= params.top_p:
            break
        kept.append(i)
        reached += shares[i] / total
    kept = [i for i in kept if shares[i] >= params.min_p * shares[kept[0]]]
    total = sum(shares[i] for i in kept)
    return [shares[i] / total if i in kept else 0.0 for i in range(len(shares))]


def test_greedy_rows_take_the_likeliest() -> None:
    logits = random_logits(8)
    tokens, logprobs = sample(logits, [row(temperature=0) for _ in range(8)])
    assert tokens == logits.argmax(-1).tolist()
    assert logprobs == {}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7},
        {"top_p": 0.05},
        {"min_p": 0.1},
        {"top_k": 8, "top_p": 0.6},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
        {"top_k": 1},
        {"top_k": 500},
        {"top_k": -1},
        {"min_p": 1.0},
    ],
)
def test_draws_follow_the_reference_distribution(fields: dict[str, Any]) -> None:
    logits = random_logits(1, seed=4)
    wanted = reference_shares(logits[0].tolist(), SamplingParams(max_tokens=1, **fields))
    draws = 4000
    rows = [row(seed=i, **fields) for i in range(draws)]
    tokens, _ = sample(logits.expand(draws, -1), rows)
    found = Counter(tokens)
    for token, share in enumerate(wanted):
        if share == 0:
            assert found[token] == 0
        else:
            assert abs(found[token] / draws - share) < 5 * math.sqrt(share * (1 - share) / draws) + 1e-3


@pytest.mark.parametrize(
    "fields", [{"top_p": 0.95}, {"top_p": 0.9999}, {"top_k": 700, "top_p": 0.5}, {"top_k": 64}, {"top_k": 3000, "top_p": 0.99}]
)
@pytest.mark.parametrize("spread", [0.01, 4.0])
def test_narrow_candidates_equal_a_whole_sort(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], spread: float) -> None:
    logits = random_logits(40, seed=1, size=5000) * spread
    narrow, _ = sample(logits, [row(seed=i, **fields) for i in range(40)])
    monkeypatch.setattr(sampling, "_WIDTHS", ())
    whole, _ = sample(logits, [row(seed=i, **fields) for i in range(40)])
    assert narrow == whole


def test_a_seed_reproduces_whatever_else_is_in_the_batch() -> None:
    fields: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "seed": 11}
    steps = random_logits(12, seed=2)
    alone, among = row(**fields), row(**fields)
    others = [row(temperature=0), row(top_k=40, seed=5), row(presence_penalty=1.0), row(logprobs=3), row(min_p=0.3)]
    for step in range(12):
        logits = torch.cat([random_logits(5, seed=50 + step), steps[step : step + 1]])
        order = random.Random(step).sample(range(6), 6)
        tokens, _ = sample(logits[order], [[*others, among][i] for i in order])
        assert tokens[order.index(5)] == sample(steps[step : step + 1], [alone])[0][0]


def test_a_negative_seed_is_a_seed_of_its_own() -> None:
    draws = [row(seed=seed).draw() for seed in (-2, -1, 0, 1, 2, 2**63 - 1)]
    assert len(set(draws)) == len(draws)
    assert row(seed=-1).draw() == row(seed=-1).draw()


def test_unseeded_rows_differ() -> None:
    logits = torch.zeros(20, SIZE)
    assert len(set(sample(logits, [row() for _ in range(20)])[0])) > 1


def test_penalties_and_bias_against_the_reference() -> None:
    logits = random_logits(3, seed=8)
    params: dict[str, Any] = {
        "logit_bias": {7: 2.5, 9: -100.0, 0: 1.0},
        "repetition_penalty": 1.4,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.3,
        "temperature": 0,
    }
    member = row(prompt=[4, 7, 7], **params)
    for token in (12, 12, 30):
        member.accept(token)
    wanted = logits[1].tolist()
    for token, bias in params["logit_bias"].items():
        wanted[token] += bias
    for token in {4, 7, 12, 30}:
        wanted[token] = wanted[token] * 1.4 if wanted[token] < 0 else wanted[token] / 1.4
    for token, count in {12: 2, 30: 1}.items():
        wanted[token] -= 0.3 * count + 0.6
    work = sampling._adjust(logits.clone(), [row(temperature=0), member, row()], [1])
    assert work[1].tolist() == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(work[[0, 2]], logits[[0, 2]]), "rows that ask for nothing stay as they are"
    assert sample(logits, [row(temperature=0), member, row()])[0][1] == max(range(SIZE), key=wanted.__getitem__)


def test_each_penalised_row_has_its_own_values() -> None:
    logits = torch.zeros(3, SIZE)
    members = [row(frequency_penalty=1.0), row(presence_penalty=0.5), row(repetition_penalty=2.0)]
    logits[2] = 4.0
    for member in members:
        member.accept(5)
        member.accept(5)
    work = sampling._adjust(logits.clone(), members, [0, 1, 2])
    assert work[:, 5].tolist() == [-2.0, -0.5, 2.0]
    assert work[2, 1].item() == 2.0, "the prompt counts for the repetition penalty"
    assert work[0, 1].item() == 0.0, "but not for the others"


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = random_logits(4, seed=3)
    rows = [row(temperature=0), row(temperature=0, logprobs=0), row(logprobs=5, logit_bias={3: 100.0}), row(temperature=0, logprobs=2)]
    tokens, found = sample(logits, rows)
    logs = logits.log_softmax(-1)
    assert sorted(found) == [1, 2, 3]
    assert [len(found[i].top) for i in (1, 2, 3)] == [0, 5, 2]
    assert tokens[2] == 3
    for i in (1, 2, 3):
        token = tokens[i]
        assert token is not None
        assert found[i].logprob == pytest.approx(logs[i, token].item(), abs=1e-5)
        assert [value for _, value in found[i].top] == pytest.approx(sorted(logs[i].tolist(), reverse=True)[: len(found[i].top)], abs=1e-5)
    assert found[3].top[0][0] == tokens[3]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("fields", [{"temperature": 0}, {}, {"top_p": 0.5}, {"temperature": 0, "logprobs": 1}])
def test_a_row_of_bad_logits_fails_alone(bad: float, fields: dict[str, Any]) -> None:
    logits = random_logits(3)
    logits[1, 7] = bad
    tokens, logprobs = sample(logits, [row(temperature=0), row(**fields), row(temperature=0)])
    assert tokens[1] is None
    assert 1 not in logprobs
    assert [tokens[0], tokens[2]] == logits[[0, 2]].argmax(-1).tolist()


def test_no_token_of_share_zero_at_the_ends_of_the_range() -> None:
    shares = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0]])
    for draw in (0.0, sampling._LARGEST_DRAW):
        found = sampling._look_up(shares, torch.full((2, 1), draw))
        assert bool((shares.gather(1, found[:, None]) > 0).all())


def test_tiny_temperatures_are_greedy() -> None:
    logits = random_logits(2)
    assert sample(logits, [row(temperature=1e-9), row(temperature=1e-4, seed=1)])[0] == logits.argmax(-1).tolist()


def test_half_precision_logits() -> None:
    logits = random_logits(2).to(torch.bfloat16)
    tokens, found = sample(logits, [row(temperature=0), row(seed=1, top_p=0.9, logprobs=1)])
    assert tokens[0] == logits[0].argmax().item()
    assert found[1].logprob <= 0
