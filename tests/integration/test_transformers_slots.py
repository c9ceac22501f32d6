"""Slots and the cache of the engine `transformers`: what frees them, and failures that stay with one sequence."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers_models import ENGINE, XI_TINY, greedy, ids, load, prompts, run

from xi_core.engine.base import SequenceError, StepOutput
from xi_core.errors import EngineError
from xi_core.testing.batch_kit import BatchKit
from xi_core.testing.harness import plan_for
from xi_plugins.engines.transformers.engine import TransformersEngine

pytestmark = [pytest.mark.engine("transformers"), pytest.mark.usefixtures("one_torch_thread")]


class TestBatch(BatchKit):
    plan = plan_for(ENGINE, str(XI_TINY), "pytorch", threads=1, batch_size=3, prefill_chunk=16)


def test_remove_frees_the_slot_at_once(small: TransformersEngine) -> None:
    for i in range(8):
        small.add(i, [3 + i], greedy(50, ignore_eos=True))
    assert not small.has_capacity()
    with pytest.raises(EngineError, match="all 8 slots"):
        small.add(9, [3], greedy(1))
    small.step()
    small.remove(3)
    small.remove(3)
    small.remove(12345)
    assert small.has_capacity()
    assert small.stats().running == 7
    assert 3 not in {token.id for token in small.step().tokens}
    for i in range(8):
        small.remove(i)
    assert small.stats().running == 0


def test_hundreds_of_joins_and_aborts_leak_nothing(small: TransformersEngine) -> None:
    asked = prompts(400, 40, seed=9)
    alone = ids(run(small, [(asked[0], greedy(10, ignore_eos=True))])[0])
    chance = random.Random(0)
    size = 0
    for i, prompt in enumerate(asked):
        if not small.has_capacity():
            small.remove(chance.choice(range(i)))
            small.step()
        if small.has_capacity():
            small.add(i, prompt, greedy(30, ignore_eos=True))
        if i % 3 == 0:
            small.step()
        if i == 200:
            size = small._runner.cache.nbytes()
    for i in range(len(asked)):
        small.remove(i)
    assert small.stats().running == 0
    assert small._runner.cache.nbytes() == size
    assert (small._runner.cache.rows, small._runner.cache.columns) == (8, 256)
    assert ids(run(small, [(asked[0], greedy(10, ignore_eos=True))])[0]) == alone


def test_the_cache_starts_small_and_grows(small_dir: Path) -> None:
    engine = load(small_dir)
    before = engine._runner.cache.nbytes()
    run(engine, [([5, 6], greedy(3))])
    assert engine._runner.cache.nbytes() == before
    run(engine, [([5] * 300, greedy(3)), *(([i], greedy(3)) for i in range(1, 31))])
    assert (engine._runner.cache.rows, engine._runner.cache.columns) == (31, 400)


def test_a_sequence_that_finds_no_memory_fails_alone(small: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small._runner.cache
    reserve = cache.reserve

    def full(columns: int, lengths: list[int], rows: int) -> None:
        if columns > 256:
            raise MemoryError("no memory for a cache")
        reserve(columns, lengths, rows)

    monkeypatch.setattr(cache, "reserve", full)
    small.add(1, [5, 6], greedy(12, ignore_eos=True))
    small.add(2, [5] * 250, greedy(100, ignore_eos=True))
    outputs = [small.step() for _ in range(25)]
    assert [(error.id, error.message) for output in outputs for error in output.errors] == [(2, "no memory for a cache")]
    assert sum(token.id == 1 for output in outputs for token in output.tokens) == 12
    assert small.stats().running == 0


def test_bad_numbers_fail_one_sequence_and_leave_no_trace(small: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    [good] = run(small, [([5, 6], greedy(8, ignore_eos=True))])
    decode = small._runner.decode

    def spoiled(tokens: list[int], lengths: list[int]) -> Any:
        logits = decode(tokens, lengths)
        logits[1] = math.nan
        small._runner.cache._layers[0].values[1] = math.nan
        return logits

    small.add(1, [5, 6], greedy(8, ignore_eos=True))
    small.add(2, [7], greedy(8, ignore_eos=True))
    tokens = small.step().tokens
    monkeypatch.setattr(small._runner, "decode", spoiled)
    output = small.step()
    monkeypatch.undo()
    assert output.errors == [SequenceError(2, "the model gave numbers that are not finite; try dtype float32 or bfloat16")]
    small.add(3, [5, 6], greedy(8, ignore_eos=True))
    outputs: list[StepOutput] = [output, *(small.step() for _ in range(8))]
    tokens += [token for each in outputs for token in each.tokens]
    assert [token.token for token in tokens if token.id == 1] == ids(good)
    assert [token.token for token in tokens if token.id == 3] == ids(good)


def test_a_failing_model_raises_from_step(small: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("device lost")

    monkeypatch.setattr(small._runner, "prefill", broken)
    small.add(1, [5], greedy(1))
    with pytest.raises(EngineError, match="device lost"):
        small.step()
