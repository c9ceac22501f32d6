"""Figures of models from their published configurations, and from GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xi_core.models import memory, typical
from xi_core.models.architecture import Architecture
from xi_core.models.gguf import Metadata

FOLDER = Path(__file__).parents[2] / "data" / "architectures"


def figures(name: str, **changes: Any) -> Architecture:
    found = Architecture.from_config(json.loads((FOLDER / f"{name}.json").read_text()) | changes)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("deepseek-r1", 671_026_419_200),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("mixtral-8x7b", 46_702_792_704),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("gemma-3-27b-it", 27_009_002_240),
        ("gpt-oss-20b", 20_914_757_184),
        ("opt-1.3b", 1_315_758_080),
        ("bge-m3", 567_754_752),
    ],
)
def test_parameters_are_those_published(name: str, published: int) -> None:
    assert memory.parameters(figures(name)).total == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("name", "published"), [("llama-3.1-70b", 70_553_706_496), ("llama-3.1-405b", 405_853_388_800)])
def test_of_a_model_without_biases_to_the_last(name: str, published: int) -> None:
    assert memory.parameters(figures(name)).total == published


@pytest.mark.parametrize(
    ("name", "model"), [("Llama-3.1-70B", "llama-3.1-70b"), ("Llama-3.1-405B", "llama-3.1-405b"), ("DeepSeek-V3", "deepseek-r1")]
)
def test_typical_models_are_the_published_ones(name: str, model: str) -> None:
    assert typical.TYPICAL[name][1] == figures(model)


@pytest.mark.parametrize("name", list(typical.TYPICAL))
def test_typical_sizes_are_their_own(name: str) -> None:
    billions, found = typical.TYPICAL[name]
    assert memory.parameters(found).total / 1e9 == pytest.approx(billions, rel=0.01)
    assert typical.nearest(billions) == (name, found)


def test_layers_with_a_window() -> None:
    assert (figures("gemma-3-27b-it").window_layers, figures("gemma-3-27b-it").window) == (52, 1024)
    assert (figures("gpt-oss-20b").window_layers, figures("gpt-oss-20b").window) == (12, 128)
    assert (figures("mistral-7b-v0.1").window_layers, figures("mistral-7b-v0.1").window) == (32, 4096)
    assert figures("qwen3-30b-a3b", sliding_window=4096).window_layers == 0  # use_sliding_window is false


def test_layers_whose_cache_does_not_grow() -> None:
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    assert figures("qwen3-30b-a3b", layer_types=kinds * 12).stateless_layers == 36


def test_experts() -> None:
    deepseek, qwen, mixtral = figures("deepseek-r1"), figures("qwen3-30b-a3b"), figures("mixtral-8x7b")
    assert (deepseek.moe_layers, deepseek.shared_intermediate, deepseek.experts_per_token) == (58, 2048, 8)
    assert (qwen.moe_layers, qwen.expert_intermediate, qwen.shared_intermediate) == (48, 768, 0)
    assert (mixtral.experts, mixtral.expert_intermediate, mixtral.moe_layers) == (8, 14336, 32)
    assert figures("qwen3-30b-a3b", decoder_sparse_step=2).moe_layers == 24
    assert figures("qwen3-30b-a3b", mlp_only_layers=[0, 1]).moe_layers == 46


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_without_a_figure_that_counts_there_are_none(missing: str) -> None:
    config = json.loads((FOLDER / "llama-3.1-70b.json").read_text())
    assert Architecture.from_config({name: value for name, value in config.items() if name != missing}) is None


@pytest.mark.parametrize("value", [None, "80", 0, -3, 1.5, True, [1], 10**30])
def test_hostile_figures_are_none(value: Any) -> None:
    config = json.loads((FOLDER / "llama-3.1-70b.json").read_text())
    assert Architecture.from_config(config | {"num_hidden_layers": value}) is None


def test_other_names_of_the_same_figures() -> None:
    found = Architecture.from_config(
        {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    )
    assert found is not None
    assert (found.layers, found.hidden, found.kv_heads, found.head_dim, found.intermediate, found.context) == (12, 768, 12, 64, 3072, 1024)
    assert (found.tied, found.gated) == (True, False)
    falcon = Architecture.from_config({"model_type": "falcon", "num_hidden_layers": 32, "hidden_size": 4544, "num_attention_heads": 71,
                                       "vocab_size": 65024, "multi_query": True})  # fmt: skip
    assert falcon is not None
    assert falcon.kv_heads == 1


def metadata(architecture: str, **values: Any) -> Metadata:
    named = {f"{architecture}.{name.replace('__', '.')}": value for name, value in values.items()}
    return Metadata(architecture, named | {"tokenizer.ggml.tokens": 128256}, 1)


def test_gguf_of_llama() -> None:
    found = Architecture.from_gguf(
        metadata("llama", block_count=80, embedding_length=8192, attention__head_count=64, attention__head_count_kv=8,
                 attention__key_length=128, attention__value_length=128, feed_forward_length=28672, context_length=131072)
    )  # fmt: skip
    assert found == figures("llama-3.1-70b")


def test_gguf_of_deepseek() -> None:
    found = Architecture.from_gguf(
        metadata(
            "deepseek2", block_count=61, embedding_length=7168, attention__head_count=128, attention__head_count_kv=1, attention__key_length=576,
            attention__value_length=512, attention__key_length_mla=192, attention__value_length_mla=128, attention__q_lora_rank=1536,
            attention__kv_lora_rank=512, rope__dimension_count=64, feed_forward_length=18432, expert_count=256, expert_used_count=8,
            expert_shared_count=1, expert_feed_forward_length=2048, leading_dense_block_count=3, context_length=163840,
        )
    )  # fmt: skip
    assert found is not None
    assert memory.cache_bytes(found, 1000) == memory.cache_bytes(figures("deepseek-r1"), 1000)
    assert memory.parameters(found).matrices == memory.parameters(figures("deepseek-r1")).matrices


def test_gguf_with_figures_for_each_layer() -> None:
    found = Architecture.from_gguf(
        metadata("gemma3", block_count=6, embedding_length=64, attention__head_count=(4,) * 6, attention__head_count_kv=(2, 2, 2, 0, 2, 2),
                 attention__sliding_window=32)
    )  # fmt: skip
    assert found is not None
    assert (found.heads, found.kv_heads, found.head_dim, found.stateless_layers, found.window_layers) == (4, 2, 16, 1, 5)
    assert Architecture.from_gguf(metadata("llama", block_count=80)) is None
