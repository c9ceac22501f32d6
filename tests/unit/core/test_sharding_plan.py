"""Layouts: those of the guides that people follow, and what makes each of them the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xi_core.models.architecture import Architecture
from xi_core.models.memory import Sharding, estimate, weight_bytes
from xi_core.models.sharding_plan import SHARE, Question, objection_to_tensor, plan

FOLDER = Path(__file__).parents[2] / "data" / "architectures"
GB, GIB = 10**9, 2**30
H100, H200 = 81559 * 2**20, 143771 * 2**20
"""Memory of the two, as their driver tells it."""


def question(name: str, model_format: str, workers: int, gpus: int, memory: int, **fields: Any) -> Question:
    found = Architecture.from_config(json.loads((FOLDER / f"{name}.json").read_text()))
    assert found is not None
    weights = weight_bytes(found, model_format, model_format if model_format == "fp8" else "none")
    fields.setdefault("tokens", found.context)
    return Question(architecture=found, weights=weights, workers=workers, gpus=gpus, memory=memory, blocks=model_format == "fp8", **fields)


KEMPNER = [
    ("llama-3.1-70b", "pytorch", 1, 4, H100, 1, 4),
    ("llama-3.1-70b", "pytorch", 1, 4, 80 * GB, 1, 4),
    ("llama-3.1-405b", "pytorch", 4, 4, H100, 4, 16),
    ("llama-3.1-405b", "pytorch", 4, 4, 80 * GB, 4, 16),
    ("llama-3.1-405b", "fp8", 2, 4, H100, 2, 8),
    ("llama-3.1-405b", "fp8", 4, 4, 80 * GB, 2, 8),
    ("deepseek-r1", "fp8", 4, 4, H100, 4, 16),
    ("deepseek-r1", "fp8", 4, 4, 80 * GB, 4, 16),
    ("deepseek-r1", "fp8", 2, 4, H200, 2, 8),
    ("deepseek-r1", "fp8", 4, 4, 141 * GB, 2, 8),
]


@pytest.mark.parametrize(("name", "model_format", "workers", "gpus", "memory", "used", "tensor"), KEMPNER)
def test_the_guides_layouts(name: str, model_format: str, workers: int, gpus: int, memory: int, used: int, tensor: int) -> None:
    layout = plan(question(name, model_format, workers, gpus, memory)).layout
    assert (layout.fits, layout.workers, layout.gpus, layout.sharding) == (True, used, gpus, Sharding(tensor=tensor))
    assert layout.batch >= 1
    assert layout.each.total <= SHARE * memory


def test_over_a_slow_network_tensor_parallelism_stays_within_a_machine() -> None:
    answer = plan(question("llama-3.1-405b", "pytorch", 4, 4, H100, network="slow"))
    assert answer.layout.fits
    assert answer.layout.sharding.tensor == 4
    assert answer.layout.sharding.pipeline == answer.layout.workers
    assert any("within a machine" in reason for reason in answer.reasons)


def test_reasons_say_why_less_will_not_do() -> None:
    reasons = " ".join(plan(question("llama-3.1-70b", "pytorch", 1, 4, H100)).reasons)
    assert "each device takes 43.6 GiB of the 73.3 GiB" in reasons
    assert "2 device(s) would have to take 86.6 GiB each" in reasons
    over = " ".join(plan(question("llama-3.1-405b", "pytorch", 4, 4, H100)).reasons)
    assert "InfiniBand" in over
    assert "8 key and value heads are repeated on 2 devices each" in over
    assert "latent cache is whole on every device" in " ".join(plan(question("deepseek-r1", "fp8", 4, 4, H100)).reasons)


def test_a_shorter_context_needs_less() -> None:
    assert plan(question("llama-3.1-70b", "pytorch", 1, 4, H100, tokens=8192)).layout.sharding == Sharding(tensor=2)


@pytest.mark.parametrize("case", [("llama-3.1-70b", "pytorch", 1, 4, H100), ("deepseek-r1", "fp8", 2, 4, H200)])
def test_the_largest_batch_and_context_just_fit(case: tuple[str, str, int, int, int]) -> None:
    asked = question(*case, tokens=20_000)
    layout = plan(asked).layout

    def total(tokens: int, sequences: int) -> int:
        return estimate(asked.architecture, asked.weights, tokens, sequences=sequences, sharding=layout.sharding).total

    assert total(20_000, layout.batch) <= layout.room < total(20_000, layout.batch + 1)
    assert total(layout.context, 1) <= layout.room
    assert layout.context == asked.architecture.context or total(layout.context + 1, 1) > layout.room


@pytest.mark.parametrize("memory", [H100, GIB])
def test_one_device_splits_no_layer(memory: int) -> None:
    """Whatever their width: 2880 is no multiple of an FP8 block."""
    asked = question("gpt-oss-20b", "fp8", 1, 1, memory)
    assert asked.architecture.expert_intermediate == 2880
    assert plan(asked).layout.sharding == Sharding()
    assert objection_to_tensor(asked, 1) == ""
    assert "whole FP8 blocks" in objection_to_tensor(asked, 2)


def test_a_context_that_fits_is_no_longer_than_the_longest() -> None:
    """Though it is longer than the model's own."""
    asked = question("llama-3.1-70b", "pytorch", 1, 4, H100, tokens=200_000)
    assert asked.tokens > asked.architecture.context
    layout = plan(asked).layout
    assert (layout.fits, layout.context) == (True, asked.tokens)


def test_nothing_fits() -> None:
    answer = plan(question("llama-3.1-405b", "pytorch", 1, 4, H100))
    assert not answer.layout.fits
    assert (answer.layout.sharding, answer.layout.batch) == (Sharding(tensor=4), 0)
    assert answer.reasons[0].startswith("nothing fits")


def test_a_pipeline_where_heads_cannot_be_shared() -> None:
    answer = plan(question("llama-3.1-70b", "pytorch", 1, 3, 80 * GIB, tokens=8192))
    assert answer.layout.sharding == Sharding(tensor=2)
    three = plan(question("llama-3.1-70b", "pytorch", 1, 3, 64 * GIB, tokens=8192))
    assert three.layout.sharding in (Sharding(tensor=1, pipeline=3), Sharding(tensor=3, pipeline=1))
    assert three.layout.sharding.tensor == 1
    assert "64 attention heads can't be shared by 3 devices" in " ".join(three.reasons)


@pytest.mark.parametrize(
    ("name", "model_format", "size", "words"),
    [
        ("llama-3.1-70b", "pytorch", 8, ""),
        ("llama-3.1-70b", "pytorch", 16, ""),
        ("llama-3.1-70b", "pytorch", 3, "64 attention heads"),
        ("deepseek-r1", "fp8", 16, ""),
        ("deepseek-r1", "fp8", 32, "whole FP8 blocks"),
        ("deepseek-r1", "pytorch", 32, ""),
        ("qwen3-30b-a3b", "fp8", 4, "768 wide"),
        ("qwen3-30b-a3b", "pytorch", 4, ""),
    ],
)
def test_what_tensor_parallelism_can_split(name: str, model_format: str, size: int, words: str) -> None:
    objection = objection_to_tensor(question(name, model_format, 8, 8, H100), size)
    assert objection == "" if not words else words in objection


def test_many_machines_are_planned_for_at_once() -> None:
    assert not plan(question("deepseek-r1", "fp8", 1000, 8, GIB)).layout.fits
