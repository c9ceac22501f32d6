"""Prefix reuse and joining in the engine `transformers`, counted in tokens read and in steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import xi_plugins  # noqa: E402
from xi_core.engine.base import SamplingParams, StepOutput, TokenOut  # noqa: E402
from xi_core.engine.batcher import Batcher  # noqa: E402
from xi_core.serving.request import COMPLETIONS  # noqa: E402
from xi_core.testing.harness import Harness, plan_for  # noqa: E402
from xi_plugins.engines.transformers.engine import TransformersEngine  # noqa: E402

pytestmark = pytest.mark.engine("transformers")

XI_TINY = Path(xi_plugins.__file__).parent / "families" / "xi_tiny" / "hf"
PLAN = "xi_plugins.engines.transformers.engine:TransformersEngine"
TOKENS = 300
"""Prompts here are made of the first so many tokens of the vocabulary."""


def load(directory: Path = XI_TINY, **options: Any) -> TransformersEngine:
    engine = TransformersEngine()
    engine.load(plan_for(PLAN, str(directory), "pytorch", **{"threads": 1, "dtype": "float32", **options}), lambda stage, share: None)
    return engine


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def engine() -> TransformersEngine:
    return load()


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, logprobs=0)


def text(seed: int, length: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(1, TOKENS) for _ in range(length)]


def run(engine: TransformersEngine, *prompts: list[int], count: int = 6, first: int = 0) -> dict[int, list[TokenOut]]:
    """Answers of prompts that come at once, by their place."""
    for i, prompt in enumerate(prompts):
        engine.add(first + i, prompt, greedy(count))
    found: dict[int, list[TokenOut]] = {i: [] for i in range(len(prompts))}
    while engine.stats().running:
        output = engine.step()
        assert not output.errors
        for token in output.tokens:
            found[token.id - first].append(token)
    return found


def read(engine: TransformersEngine, *prompts: list[int]) -> int:
    """How many tokens went through the model for these prompts."""
    before = engine.stats().prefilled
    run(engine, *prompts)
    return engine.stats().prefilled - before


SYSTEM = text(1, 300)

# ---- what is read -------------------------------------------------------------------------------


def test_the_second_request_reads_only_what_is_its_own(engine: TransformersEngine) -> None:
    assert read(engine, [*SYSTEM, 5, 6]) == 302
    assert read(engine, [*SYSTEM, 7, 8, 9]) == 3
    assert read(engine, text(2, 100)) == 100
    assert read(engine, [*SYSTEM, 5, 6, 7]) == 3, "of a row's last tokens fewer than 16 are not worth a row"
    assert engine.stats().reused == 600


def test_requests_that_come_together_read_what_they_share_once(engine: TransformersEngine) -> None:
    assert read(engine, *([*SYSTEM, i, i + 1] for i in range(1, 33))) == 302 + 31 * 2
    assert read(engine, *([*SYSTEM, i, i + 2] for i in range(1, 33))) == 32


def test_a_request_that_joins_takes_from_those_that_run(engine: TransformersEngine) -> None:
    engine.add(1, [*SYSTEM, 5], greedy(50))
    engine.step()
    before = engine.stats().prefilled
    engine.add(2, [*SYSTEM, 6], greedy(50))
    [cached] = [token.cached for token in engine.step().tokens if token.id == 2]
    assert (engine.stats().prefilled - before, cached) == (1, 300)
    engine.remove(1)
    engine.remove(2)


def test_a_conversation_goes_on_where_it_stopped(engine: TransformersEngine) -> None:
    prompt = text(3, 40)
    answer = [token.token for token in run(engine, prompt)[0]]
    assert read(engine, [*prompt, *answer, *text(4, 10)]) == 11, "the last token of an answer never went through the model"


def test_what_is_kept_survives_the_growth_of_the_cache(engine: TransformersEngine) -> None:
    run(engine, SYSTEM)
    sizes = engine._runner.cache.rows, engine._runner.cache.columns
    run(engine, *(text(10 + i, 400) for i in range(6)))
    assert all(now > before for now, before in zip((engine._runner.cache.rows, engine._runner.cache.columns), sizes, strict=True))
    assert read(engine, [*SYSTEM, 5]) == 1


def test_it_can_be_switched_off() -> None:
    engine = load(enable_prefix_caching=False)
    assert [read(engine, [*SYSTEM, 5]) for _ in range(2)] == [301, 301]
    assert engine.stats().reused == 0


def test_the_answer_tells_how_much_was_cached() -> None:
    with Harness(plan_for(PLAN, str(XI_TINY), "pytorch", threads=1)) as harness:

        def usage(**fields: Any) -> dict[str, Any]:
            answer = harness.submit(COMPLETIONS, {"prompt": [*SYSTEM, 5], "max_tokens": 2, "temperature": 0, **fields}).answer()
            found = answer.events[-1] if fields.get("stream") else answer.body
            return dict(found["usage"])

        assert usage()["prompt_tokens_details"] == {"cached_tokens": 0}
        assert usage(n=2)["prompt_tokens_details"] == {"cached_tokens": 300}
        streamed = usage(stream=True, stream_options={"include_usage": True})
        assert streamed["prompt_tokens_details"] == {"cached_tokens": 300}
        assert streamed["prompt_tokens"] == 301


# ---- what is answered ---------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "slots"), [(512, 32), (48, 5)])
def test_answers_are_those_without_reuse(chunk: int, slots: int) -> None:
    chance = random.Random(7)
    stems = [text(20 + i, length) for i, length in enumerate((150, 60, 200))]
    prompts = [chance.choice(stems)[: chance.randint(10, 200)] + text(100 + i, chance.randint(1, 12)) for i in range(60)]
    plain, reusing = (load(prefill_chunk=chunk, batch_size=slots, enable_prefix_caching=on) for on in (False, True))
    wanted = [run(plain, prompt)[0] for prompt in prompts]
    found: dict[int, list[TokenOut]] = {i: [] for i in range(len(prompts))}
    ahead = list(enumerate(prompts))
    while ahead or reusing.stats().running:
        while ahead and reusing.has_capacity() and chance.random() < 0.6:
            id, prompt = ahead.pop(0)
            reusing.add(id, prompt, greedy(6))
        for token in reusing.step().tokens:
            found[token.id].append(token)
    assert [[token.token for token in found[i]] for i in found] == [[token.token for token in answer] for answer in wanted]
    for i, answer in enumerate(wanted):
        pairs = [(a.logprobs, b.logprobs) for a, b in zip(found[i], answer, strict=True)]
        assert all(a and b and a.logprob == pytest.approx(b.logprob, abs=2e-4) for a, b in pairs)
    assert reusing.stats().reused > 2000
    assert reusing.stats().prefilled + reusing.stats().reused == sum(map(len, prompts)) == plain.stats().prefilled


def test_a_row_of_bad_numbers_gives_nothing_on(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [token.token for token in run(load(), SYSTEM)[0]]
    decode = engine._runner.decode

    def spoiled(tokens: list[int], lengths: list[int]) -> Any:
        return decode(tokens, lengths).fill_(float("nan"))

    monkeypatch.setattr(engine._runner, "decode", spoiled)
    engine.add(1, SYSTEM, greedy(6))
    engine.step()
    assert [error.id for error in engine.step().errors] == [1]
    monkeypatch.undo()
    before = engine.stats().prefilled
    assert [token.token for token in run(engine, SYSTEM)[0]] == wanted
    assert engine.stats().prefilled - before == 300


# ---- joining ------------------------------------------------------------------------------------


def steps_to_first_token(engine: TransformersEngine, prompt: list[int], running: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Through the batcher: steps that end between the submission of `prompt` beside `running` others and its first token."""
    go, steps, step = Semaphore(0), SimpleQueue[StepOutput](), engine.step

    def gated() -> StepOutput:
        go.acquire()
        return step()

    def one_step() -> set[int]:
        go.release()
        return {token.id for token in steps.get(timeout=30).tokens}

    monkeypatch.setattr(engine, "step", gated)
    batcher = Batcher(engine, steps.put, lambda error: steps.put(StepOutput([])), 0.003)
    batcher.start()
    try:
        for id in range(running):
            batcher.submit(id, text(50 + id, 30), greedy(400))
        started: set[int] = set()
        while len(started) < running:
            started |= one_step()
        batcher.submit(running, prompt, greedy(4))
        return next(count for count in range(1, 100) if running in one_step())
    finally:
        go.release(10)
        batcher.stop(10.0)


@pytest.mark.parametrize("length", [5, 48, 500])
def test_a_request_that_joins_31_has_its_first_token_within_three_steps(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within two: one may be running when it comes, and its prompt is read in the next."""
    assert steps_to_first_token(load(), text(99, length), 31, monkeypatch) <= 2


def test_a_request_that_joins_is_read_in_the_very_next_step(engine: TransformersEngine) -> None:
    for id in range(31):
        engine.add(id, text(50 + id, 30), greedy(100))
    while any(row.filled < len(row.prompt) for row in engine._batch.waiting):
        engine.step()
    engine.add(31, text(99, 400), greedy(4))
    assert {token.id for token in engine.step().tokens} == set(range(32)), "and nobody waits for it"
