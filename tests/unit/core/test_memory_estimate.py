"""What models take of memory, against figures that papers and published files tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xi_core.byte_size import parse_bytes
from xi_core.errors import ConfigError, InvalidRequest
from xi_core.models.architecture import Architecture
from xi_core.models.memory import Sharding, activation_bytes, cache_bytes, estimate, weight_bytes
from xi_core.models.typical import TYPICAL
from xi_core.models.weight_bits import GGUF, bits_of

FOLDER = Path(__file__).parents[2] / "data" / "architectures"
GB = 10**9
SMALL = Architecture(layers=4, hidden=64, heads=8, kv_heads=2, head_dim=8, intermediate=128, vocab=100)


def figures(name: str) -> Architecture:
    found = Architecture.from_config(json.loads((FOLDER / f"{name}.json").read_text()))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "model_format", "quantization", "published"),
    [
        ("llama-3.1-70b", "pytorch", "none", 141.1 * GB),
        ("llama-3.1-70b", "ggufv2", "Q4_K_M", 43.1 * GB),  # llama.cpp's table
        ("llama-3.1-405b", "ggufv2", "q4_k_m", 249.1 * GB),
        ("deepseek-r1", "pytorch", "fp8", 674 * GB),  # the hub's files, 688.6 GB, without the 14 B of the second prediction
        ("mistral-7b-v0.1", "awq", "Int4", 4.15 * GB),
        ("mistral-7b-v0.1", "gptq", "int4", 4.16 * GB),
        ("mixtral-8x7b", "gptq", "Int4", 24.7 * GB),
        ("mistral-7b-v0.1", "mlx", "4bit", 4.08 * GB),
    ],
)
def test_weights_come_near_the_published_files(name: str, model_format: str, quantization: str, published: float) -> None:
    assert weight_bytes(figures(name), model_format, quantization) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(
    ("name", "quantization", "published"),
    [("Qwen2.5-0.5B", "q4_k_m", 398 * 10**6), ("Qwen2.5-1.5B", "q4_k_m", 986 * 10**6), ("Qwen2.5-0.5B", "q8_0", 531 * 10**6)],
)
def test_small_gguf_files_whose_embeddings_are_large(name: str, quantization: str, published: int) -> None:
    assert weight_bytes(TYPICAL[name][1], "ggufv2", quantization) == pytest.approx(published, rel=0.03)


def test_bits_by_name() -> None:
    assert bits_of("pytorch", None).matrices == bits_of("pytorch", "none").matrices == bits_of("mlx", "none").rest == 16
    assert bits_of("pytorch", "fp32").rest == 32
    assert bits_of("pytorch", "gptq-4bit") == bits_of("gptq", "Int4") == bits_of("pytorch", "awq-4bit") == bits_of("awq", "")
    assert bits_of("gptq", "Int8").matrices == 8 + 24 / 128
    assert bits_of("pytorch", "bitsandbytes-8bit").matrices == bits_of("pytorch", "8-bit").matrices == 8
    assert bits_of("fp8", "fp8") == bits_of("pytorch", "fp8") == bits_of("fp8", None)
    assert bits_of("pytorch", "mxfp4").matrices == 4.25
    assert bits_of("mlx", "8bit").rest == 8.5


@pytest.mark.parametrize(
    ("model_format", "quantization", "listed"), [("ggufv2", "q9_x", "q4_k_m"), ("ggufv2", None, "q8_0"), ("pytorch", "tiny", "fp8"), ("mlx", "x", "4bit")]
)  # fmt: skip
def test_unknown_quantizations_list_the_known(model_format: str, quantization: str | None, listed: str) -> None:
    with pytest.raises(InvalidRequest, match=listed) as caught:
        bits_of(model_format, quantization)
    assert caught.value.param == "quantization"


def test_smaller_names_are_smaller() -> None:
    order = ["iq1_s", "iq2_xxs", "q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "f32"]
    assert [GGUF[name] for name in order] == sorted(GGUF[name] for name in order)


def test_cache_of_a_token() -> None:
    """OPT-13B: 800 KB a token (PagedAttention, section 3). DeepSeek: 576 values a layer (DeepSeek-V2, section 2.1.4)."""
    opt = Architecture(layers=40, hidden=5120, heads=40, kv_heads=40, head_dim=128, intermediate=20480, vocab=50272)
    assert cache_bytes(opt, 1) == 800 * 1024
    assert cache_bytes(figures("deepseek-r1"), 1) == 61 * 576 * 2
    assert cache_bytes(figures("llama-3.1-70b"), 1) == 327_680
    assert cache_bytes(figures("llama-3.1-70b"), 1, bits=8) == 163_840


def test_a_window_bounds_the_cache() -> None:
    mistral, gemma = figures("mistral-7b-v0.1"), figures("gemma-3-27b-it")
    assert cache_bytes(mistral, 32768) == cache_bytes(mistral, 4096)
    per_layer = 16 * 256 * 2
    assert cache_bytes(gemma, 131072) == per_layer * (10 * 131072 + 52 * 1024)


def test_tensor_parallelism_shares_heads_until_each_has_one() -> None:
    llama = figures("llama-3.1-405b")
    shares = [cache_bytes(llama, 1000, sharding=Sharding(tensor=size)) for size in (1, 2, 4, 8, 16)]
    assert shares == [shares[0], shares[0] // 2, shares[0] // 4, shares[0] // 8, shares[0] // 8]
    deepseek = figures("deepseek-r1")
    assert cache_bytes(deepseek, 1000, sharding=Sharding(tensor=8)) == cache_bytes(deepseek, 1000)


def test_a_pipeline_is_as_large_as_its_largest_stage() -> None:
    whole, half = (estimate(SMALL, 4000, 100, sharding=Sharding(pipeline=n), overhead=0) for n in (1, 2))
    assert (half.weights, half.cache) == (whole.weights // 2, whole.cache // 2)
    assert estimate(SMALL, 4000, 100, sharding=Sharding(pipeline=3), overhead=0).weights == 2000  # 2 of 4 layers


def test_activations_grow_with_a_step_and_no_further() -> None:
    one = TYPICAL["Qwen2.5-7B"][1]
    assert activation_bytes(one, 100) < activation_bytes(one, 2048) == activation_bytes(one, 100_000)
    assert 100 * 2**20 < activation_bytes(one, 8192) < 600 * 2**20


@given(tokens=st.integers(1, 10**6), sequences=st.integers(1, 64), tensor=st.sampled_from([1, 2, 4, 8]), pipeline=st.integers(1, 4))
def test_more_is_never_less(tokens: int, sequences: int, tensor: int, pipeline: int) -> None:
    sharding = Sharding(tensor=tensor, pipeline=pipeline)
    here = estimate(SMALL, 10_000, tokens, sequences=sequences, sharding=sharding)
    assert here.total == here.weights + here.cache + here.activations + here.overhead
    assert estimate(SMALL, 10_000, tokens + 1, sequences=sequences, sharding=sharding).total >= here.total
    assert estimate(SMALL, 10_000, tokens, sequences=sequences + 1, sharding=sharding).total >= here.total
    assert here.total <= estimate(SMALL, 10_000, tokens, sequences=sequences).total


@pytest.mark.parametrize(
    ("text", "size"),
    [("80", 80 * 2**30), ("80GiB", 80 * 2**30), ("80 gib", 80 * 2**30), ("80GB", 80 * GB), ("1.5g", 3 * 2**29), ("512M", 2**29), ("7b", 7)],
)
def test_sizes_in_bytes(text: str, size: int) -> None:
    assert parse_bytes(text, "XI_X") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "80 parsecs", "0", "1e3", "0.2b", "80GiBs"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"XI_X: '.*' is no size") as caught:
        parse_bytes(text, "XI_X")
    assert caught.value.param == "XI_X"
