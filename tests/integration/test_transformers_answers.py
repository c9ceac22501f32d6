"""Answers of the engine `transformers`: those of real models, in any company, and how they end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers_models import SMALL, XI_TINY, greedy, ids, load, prompts, run, save_small  # noqa: E402

from xi_core.engine.base import SamplingParams  # noqa: E402
from xi_core.errors import ContextLengthExceeded, UnknownOption  # noqa: E402
from xi_plugins.engines.transformers.engine import TransformersEngine  # noqa: E402

pytestmark = [pytest.mark.engine("transformers"), pytest.mark.usefixtures("one_torch_thread")]

EXPECTED = Path(__file__).parents[1] / "data" / "xi_tiny_expected.json"


def expected() -> list[tuple[list[int], list[int]]]:
    sections = json.loads(EXPECTED.read_text(encoding="utf-8"))
    entries = [entry for name in ("chat", "tools", "follow_ups") for entry in sections[name]]
    return [(entry["prompt_ids"], entry["answer_ids"]) for entry in entries]


@pytest.mark.parametrize(("joins", "chunk", "every"), [(3, 512, 1), (32, 512, 2), (5, 16, 4)])
def test_reference_answers_with_joins_and_leaves(joins: int, chunk: int, every: int) -> None:
    engine = load(XI_TINY, prefill_chunk=chunk)
    wanted = expected()[::every]
    found = run(engine, [(prompt, greedy(len(answer))) for prompt, answer in wanted], joins)
    wrong = [i for i, (_, answer) in enumerate(wanted) if ids(found[i]) != answer]
    assert not wrong
    assert all(answer[-1].finish == "stop" for answer in found)


def test_reference_answers_alone(tiny: TransformersEngine) -> None:
    for prompt, answer in expected()[::8]:
        assert ids(run(tiny, [(prompt, greedy(len(answer)))])[0]) == answer


CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**{**SMALL, "sliding_window": None}),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=400, bos_token_id=0, eos_token_id=0),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=16, sliding_window=400),
}


def without_cache(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy answer of the plain model, the whole text read anew for each token."""
    text = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("name", CONFIGS)
def test_batched_answers_equal_the_plain_models(tmp_path: Path, name: str) -> None:
    directory = save_small(tmp_path, CONFIGS[name]())
    engine = load(directory, prefill_chunk=32, batch_size=5)
    asked = prompts(12, 90)
    found = run(engine, [(prompt, greedy(12, ignore_eos=True)) for prompt in asked], joins=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    assert [ids(answer) for answer in found] == [without_cache(model, prompt, 12) for prompt in asked]
    assert len({tuple(ids(answer)) for answer in found}) > 6, "answers depend on prompts"


def test_chunked_prefill_equals_whole(small_dir: Path) -> None:
    asked = [(prompt, greedy(10, ignore_eos=True, logprobs=3)) for prompt in prompts(9, 300, seed=3)]
    whole = run(load(small_dir, prefill_chunk=4096), asked)
    chunked = run(load(small_dir, prefill_chunk=16), asked, joins=2)
    assert [ids(answer) for answer in chunked] == [ids(answer) for answer in whole]
    for one, other in zip(chunked, whole, strict=True):
        pairs = [(a.logprobs, b.logprobs) for a, b in zip(one, other, strict=True)]
        assert all(a and b and a.logprob == pytest.approx(b.logprob, abs=1e-4) for a, b in pairs)


def test_a_long_prompt_does_not_stop_the_others(small: TransformersEngine) -> None:
    small.add(1, [5, 6], greedy(100, ignore_eos=True))
    small.step()
    small.add(2, prompts(1, 1)[0] * 200, greedy(2, ignore_eos=True))
    steps = [small.step() for _ in range(7)]
    assert [[token.id for token in output.tokens] for output in steps[:6]] == [[1]] * 6
    assert [token.id for token in steps[6].tokens] == [1, 2]
    small.remove(1)
    small.remove(2)


def test_finish_reasons_and_limits(small: TransformersEngine) -> None:
    [answer] = run(small, [([5], greedy(4, ignore_eos=True))])
    assert [token.finish for token in answer] == [None, None, None, "length"]
    [full] = run(small, [([5] * 397, greedy(50, ignore_eos=True))])
    assert len(full) == 3, "the context of 400 is full"
    assert full[-1].finish == "length"
    [ended] = run(small, [([5], greedy(9, logit_bias={0: 100.0}))])
    assert [(token.token, token.finish) for token in ended] == [(0, "stop")]
    [ignored] = run(small, [([5], greedy(3, logit_bias={0: 100.0}, ignore_eos=True))])
    assert ids(ignored) == [0, 0, 0]


def test_context_length_can_be_lowered(small_dir: Path) -> None:
    engine = load(small_dir, context_length=20)
    [answer] = run(engine, [([5] * 15, greedy(50, ignore_eos=True))])
    assert len(answer) == 5
    with pytest.raises(ContextLengthExceeded, match="20 tokens; the context holds 20"):
        engine.add(1, [5] * 20, greedy(1))
    with pytest.raises(UnknownOption, match="more than the 400"):
        load(small_dir, context_length=401)


def test_sampling_reproduces_by_seed_beside_others(small: TransformersEngine) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.2, top_p=0.9, seed=5, ignore_eos=True, repetition_penalty=1.1)
    [alone] = run(small, [([7, 8, 9], params)])
    others = [(prompt, SamplingParams(max_tokens=9, seed=i, ignore_eos=True)) for i, prompt in enumerate(prompts(12, 40))]
    among = run(small, [*others[:6], ([7, 8, 9], params), *others[6:]], joins=2)[6]
    assert ids(among) == ids(alone)


def test_logprobs_are_a_distribution(small: TransformersEngine) -> None:
    [answer] = run(small, [([7, 8, 9], greedy(5, logprobs=96, ignore_eos=True))])
    for token in answer:
        assert token.logprobs is not None
        assert sum(math.exp(value) for _, value in token.logprobs.top) == pytest.approx(1, abs=1e-4)
        assert token.logprobs.top[0] == (token.token, token.logprobs.logprob)
