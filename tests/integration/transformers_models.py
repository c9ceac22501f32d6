"""The engine `transformers` for tests: the bundled model, small random ones made here, and their answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

import xi_plugins
from xi_core.engine.base import SamplingParams, TokenOut
from xi_core.testing.harness import plan_for
from xi_core.testing.manifest_bounds import widened
from xi_plugins.engines.transformers.engine import TransformersEngine
from xi_plugins.engines.transformers.plugin import full_manifest

XI_TINY = Path(xi_plugins.__file__).parent / "families" / "xi_tiny" / "hf"
ENGINE = "xi_plugins.engines.transformers.engine:TransformersEngine"
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 400,
    "eos_token_id": 0,
}


def load(directory: Path, **options: Any) -> TransformersEngine:
    plan = plan_for(ENGINE, str(directory), "pytorch", **{"threads": 1, **options})
    engine = TransformersEngine()
    loaded = engine.load(plan, lambda stage, share: None)
    assert widened(loaded.manifest, full_manifest()) == []
    assert loaded.slots == options.get("batch_size", 32)
    return engine


def save_small(directory: Path, config: Any) -> Path:
    """A random model of `config` whose answers depend on all of the prompt, with a tokenizer."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(6)
    model.save_pretrained(directory)
    words = {f"w{i}": i for i in range(96)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1")).save(str(directory / "tokenizer.json"))
    return directory


def greedy(count: int, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0, **fields)


def run(engine: TransformersEngine, requests: list[tuple[list[int], SamplingParams]], joins: int = 1000) -> list[list[TokenOut]]:
    """Answers of all requests, of which at most `joins` join before each step."""
    found: dict[int, list[TokenOut]] = {i: [] for i in range(len(requests))}
    ahead = list(enumerate(requests))
    while ahead or engine.stats().running:
        for _ in range(joins):
            if not ahead or not engine.has_capacity():
                break
            i, (prompt, sampling) = ahead.pop(0)
            engine.add(i, prompt, sampling)
        output = engine.step()
        assert not output.errors
        ids = [token.id for token in output.tokens]
        assert len(ids) == len(set(ids)), "one token of a sequence per step"
        for token in output.tokens:
            found[token.id].append(token)
    return list(found.values())


def ids(answer: list[TokenOut]) -> list[int]:
    return [token.token for token in answer]


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(1, 96) for _ in range(chance.randint(1, longest))] for _ in range(count)]
