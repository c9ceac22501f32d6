"""What transformers and mlx say of a model that is to be shared over workers, before anything is started."""

from __future__ import annotations

import re
from typing import Any

import pytest

from xi_core.engine.info import ShardRequest
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.engines.mlx import plugin as mlx
from xi_plugins.engines.transformers import plugin as transformers


def request(architecture: str | None, n_gpu: int = 0, model_type: str = "LLM", **options: Any) -> ShardRequest:
    model = ModelSpec(
        name="m", format="pytorch", source=SourceRef(source="local", id="x"), architecture=architecture, model_type=model_type
    )
    return ShardRequest(model=model, options=options, n_worker=2, n_gpu=n_gpu)


@pytest.mark.parametrize("architecture", [*transformers.SHARDED, None])
@pytest.mark.parametrize("n_gpu", [0, 1])
def test_transformers_takes(architecture: str | None, n_gpu: int) -> None:
    assert transformers.shard(request(architecture, n_gpu)).ok


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request("GemmaForCausalLM"), "it shards LlamaForCausalLM, .*; this model is GemmaForCausalLM"),
        (request("Qwen2ForCausalLM", 2), "each of its ranks has one GPU or a CPU; n_gpu is 2"),
        (request("Qwen2ForCausalLM", device_map="auto"), "the option device_map is for models that are not sharded"),
        (request("Qwen2ForCausalLM", quantize="torchao-int8"), "the option quantize is for models that are not sharded"),
        (request("Qwen2ForCausalLM", model_type="embedding"), "not those of type embedding"),
    ],
)
def test_transformers_refuses_in_words(asked: ShardRequest, words: str) -> None:
    support = transformers.shard(asked)
    assert not support.ok
    assert re.search(words, support.reason), support.reason


@pytest.mark.parametrize("architecture", [*mlx.SHARDED, None])
def test_mlx_takes(architecture: str | None) -> None:
    assert mlx.shard(request(architecture)).ok
    assert mlx.shard(request(architecture, pipeline=True)).ok is (architecture is None or architecture in mlx.PIPELINED)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request("GemmaForCausalLM"), "mlx-lm cuts .*Qwen3ForCausalLM within layers; this model is GemmaForCausalLM"),
        (request("LlamaForCausalLM", pipeline=True), "mlx-lm cuts .*Qwen3MoeForCausalLM between layers; this model is LlamaForCausalLM"),
        (request("Qwen2ForCausalLM", 2), "each of its ranks has one device; n_gpu is 2"),
    ],
)
def test_mlx_refuses_in_words(asked: ShardRequest, words: str) -> None:
    support = mlx.shard(asked)
    assert not support.ok
    assert re.search(words, support.reason), support.reason
