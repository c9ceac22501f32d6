"""Reading local models: directories and GGUF headers, whole, damaged and hostile."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xi_core.errors import ArtifactError
from xi_core.models import gguf
from xi_core.models.inspect import inspect, inspect_config

CONFIG = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 1024}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def gguf_bytes(*pairs: bytes, version: int = 3, count: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + b"".join(pairs)


TOKENS = pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("漢"))
SCORES = pair("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 3) + struct.pack("<fff", 1, 2, 3))
WHOLE = gguf_bytes(
    pair("general.architecture", 8, text("qwen2")),
    TOKENS,
    SCORES,
    pair("qwen2.context_length", 4, struct.pack("<I", 2048)),
    pair("general.file_type", 4, struct.pack("<I", 15)),
    pair("tokenizer.chat_template", 8, text("{{ x }}")),
)


def safetensors(path: Path, metadata: dict[str, str] | None = None, cut: int = 0) -> None:
    header: dict[str, Any] = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    if metadata:
        header["__metadata__"] = metadata
    data = json.dumps(header).encode()
    whole = struct.pack("<Q", len(data)) + data + bytes(16)
    path.write_bytes(whole[: len(whole) - cut])


def directory(path: Path, config: dict[str, Any] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    safetensors(path / "model.safetensors")
    return path


def test_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m-q4.gguf"
    path.write_bytes(WHOLE + bytes(100))
    spec = inspect(path)
    assert (spec.name, spec.format, spec.architecture) == ("m-q4", "ggufv2", "qwen2")
    assert (spec.context_length, spec.quantization, spec.abilities) == (2048, "q4_k_m", ["generate", "chat"])
    assert (spec.source.source, spec.source.id) == ("local", str(path))


QWEN3 = "<tool_call>{% if enable_thinking %}<think>{% endif %}"


def test_the_template_tells_of_tools_and_thinking(tmp_path: Path) -> None:
    expected = ("hermes", "qwen3", ["generate", "chat", "tools", "reasoning", "hybrid"])
    named = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": QWEN3}]
    files = {
        "chat_template.jinja": QWEN3,
        "chat_template.json": json.dumps({"chat_template": QWEN3}),
        "tokenizer_config.json": json.dumps({"chat_template": named}),
    }
    for name, content in files.items():
        folder = directory(tmp_path)
        (folder / name).write_text(content)
        spec = inspect(folder)
        assert (spec.tool_parser, spec.reasoning_parser, spec.abilities) == expected, name
        (folder / name).unlink()
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(pair("general.architecture", 8, text("a")), TOKENS, pair("tokenizer.chat_template", 8, text(QWEN3))))
    spec = inspect(path)
    assert (spec.tool_parser, spec.reasoning_parser, spec.abilities) == expected


def test_numbers_of_a_gguf_file(tmp_path: Path) -> None:
    heads = [2] * gguf.MOST_NUMBERS
    path = tmp_path / "m.gguf"
    path.write_bytes(
        gguf_bytes(
            pair("general.architecture", 8, text("a")),
            TOKENS,
            pair("a.block_count", 10, struct.pack("<Q", 4)),
            pair("a.embedding_length", 6, struct.pack("<f", float("inf"))),
            pair("a.context_length", 5, struct.pack("<i", -1)),
            pair("a.attention.head_count", 9, struct.pack(f"<IQ{len(heads)}I", 4, len(heads), *heads)),
            pair("a.attention.head_count_kv", 9, struct.pack(f"<IQ{len(heads) + 1}I", 4, len(heads) + 1, *heads, 2)),
        )
        + bytes(9)
    )
    found = gguf.read_metadata(path)
    assert found.values["tokenizer.ggml.tokens"] == 3
    assert (found.architecture, found.size) == ("a", path.stat().st_size)
    assert [found.number(name) for name in ("block_count", "embedding_length", "context_length", "attention.key_length")] == [4, 0, 0, 0]
    assert found.numbers("attention.head_count") == tuple(heads)
    assert found.numbers("attention.head_count_kv") == (), "longer than any model has layers"


def test_a_directory(tmp_path: Path) -> None:
    spec = inspect(directory(tmp_path))
    assert (spec.format, spec.architecture, spec.context_length) == ("pytorch", "Qwen2ForCausalLM", 1024)
    assert (spec.quantization, spec.abilities) == (None, ["generate"])


def test_a_directory_with_template_and_quantization(tmp_path: Path) -> None:
    directory(tmp_path, {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    (tmp_path / "chat_template.jinja").write_text("x")
    spec = inspect(tmp_path)
    assert (spec.quantization, spec.abilities) == ("gptq-4bit", ["generate", "chat"])


def test_an_mlx_directory(tmp_path: Path) -> None:
    directory(tmp_path, {"quantization": {"group_size": 64, "bits": 4}})
    safetensors(tmp_path / "model.safetensors", {"format": "mlx"})
    spec = inspect(tmp_path)
    assert (spec.format, spec.quantization) == ("mlx", "4bit")


def test_a_directory_with_one_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(WHOLE)
    assert inspect(tmp_path).name == "m"
    (tmp_path / "n.gguf").write_bytes(WHOLE)
    with pytest.raises(ArtifactError, match=r"2 GGUF files.*m\.gguf, n\.gguf"):
        inspect(tmp_path)


def test_a_configuration_may_hold_infinity(tmp_path: Path) -> None:
    directory(tmp_path, {"time_step_limit": [0.0, float("inf")]})
    assert inspect(tmp_path).context_length == 1024


def _no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def _pickles(path: Path) -> None:
    _no_weights(path)
    (path / "pytorch_model.bin").write_bytes(b"x")


def _missing_shard(path: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _escaping_shard(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))


def _bad_index(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text("[]")


def _no_config(path: Path) -> None:
    (path / "config.json").unlink()


def _bad_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def _deep_config(path: Path) -> None:
    (path / "config.json").write_text("[" * 100_000)


def _cut(path: Path) -> None:
    safetensors(path / "model.safetensors", cut=1)


def _cut_header(path: Path) -> None:
    safetensors(path / "model.safetensors", cut=40)


def _empty(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def _huge_header(path: Path) -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")


def _no_offsets(path: Path) -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b'{"w": 1}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_config, "has no config.json"),
        (_no_weights, "no weights"),
        (_pickles, r"pytorch_model.bin only.*can run code.*safetensors"),
        (_missing_shard, r"not complete: model-2.safetensors missing \(1 of 2\)"),
        (_escaping_shard, "it names '../../etc/passwd'"),
        (_bad_index, "no JSON object"),
        (_bad_config, "is damaged"),
        (_deep_config, "is damaged"),
        (_cut, "has .* bytes, its header tells of"),
        (_cut_header, "header doesn't fit"),
        (_empty, "header doesn't fit"),
        (_huge_header, "header doesn't fit"),
        (_no_offsets, "tensor 'w' has no place"),
    ],
)
def test_a_damaged_directory_is_refused_in_words(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(directory(tmp_path))
    with pytest.raises(ArtifactError, match=words):
        inspect(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file or directory at"):
        inspect(tmp_path / "nowhere")


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "my model.gguf"
    path.write_bytes(gguf_bytes(pair("general.architecture", 8, text("llama"))))
    assert inspect(path.as_uri()).source.id == inspect(path).source.id == str(path)
    with pytest.raises(ArtifactError, match="names another machine, 'other'"):
        inspect("file://other/model.gguf")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 something", "not a GGUF file"),
        (b"GGUF", "cut short"),
        (gguf_bytes(version=1), "version 1 is not supported"),
        (gguf_bytes(count=2**60), "metadata keys"),
        (gguf_bytes(struct.pack("<Q", 2**63)), "a text of"),
        (gguf_bytes(pair("general.architecture", 8, struct.pack("<Q", 2**62))), "a text of"),
        (gguf_bytes(pair("a", 9, struct.pack("<IQ", 8, 2**40))), "an array of"),
        (gguf_bytes(pair("a", 9, struct.pack("<IQ", 4, 2**61))), "cut short"),
        (gguf_bytes(pair("a", 9, struct.pack("<IQ", 9, 1))), "an array of"),
        (gguf_bytes(pair("a", 99, b"")), "value type 99"),
        (WHOLE[:-3], "cut short"),
        (gguf_bytes(TOKENS), "no general.architecture"),
        (gguf_bytes(pair("general.architecture", 8, text(""))), "no general.architecture"),
        (gguf_bytes(pair("general.architecture", 9, struct.pack("<IQB", 0, 1, 7))), "no general.architecture"),
        (gguf_bytes(pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2**40))), "an array of"),
        (gguf_bytes(pair("a.block_count", 9, struct.pack("<IQ", 4, 2**61))), "cut short"),
    ],
)
def test_a_damaged_gguf_file_is_refused_in_words(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=words):
        inspect(path)


@given(
    data=st.one_of(st.binary(max_size=200), st.integers(0, len(WHOLE)).map(lambda n: WHOLE[4:n])),
    at=st.integers(0, 400),
    byte=st.integers(0, 255),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_hostile_gguf_file_ends_in_values_or_an_artifact_error(tmp_path: Path, data: bytes, at: int, byte: int) -> None:
    damaged = bytearray(b"GGUF" + data)
    damaged[4 + at % max(1, len(data)) : 5 + at % max(1, len(data))] = bytes([byte])
    path = tmp_path / "m.gguf"
    path.write_bytes(damaged)
    try:
        found = gguf.read_metadata(path)
    except ArtifactError:
        return
    assert all(isinstance(value, int | float | bool | str | tuple) for value in found.values.values())
    assert all(number >= 0 for number in found.numbers("context_length"))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("Once upon a time")
    with pytest.raises(ArtifactError, match=r"no engine here takes .*book\.txt"):
        inspect(path)


@pytest.mark.parametrize(
    ("architecture", "files", "kind"),
    [
        ("Qwen2ForCausalLM", (), "LLM"),
        ("Qwen2ForCausalLM", ("modules.json",), "embedding"),
        ("GPT2LMHeadModel", (), "LLM"),
        ("BertModel", (), "embedding"),
        ("BertForMaskedLM", (), "embedding"),
        ("ChatGLMModel", ("chat_template.jinja",), "LLM"),
        ("BertForSequenceClassification", (), "rerank"),
        ("BertForSequenceClassification", ("modules.json",), "rerank"),
        ("T5ForConditionalGeneration", (), "LLM"),
    ],
)
def test_the_type_of_a_directory(tmp_path: Path, architecture: str, files: tuple[str, ...], kind: str) -> None:
    directory(tmp_path, {"architectures": [architecture]})
    for name in files:
        (tmp_path / name).write_text("[]")
    spec = inspect(tmp_path)
    assert spec.model_type == kind
    assert spec.abilities[0] == {"LLM": "generate", "embedding": "embed", "rerank": "rerank"}[kind]


FIGURES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 50,
}


def test_what_memory_follows_from(tmp_path: Path) -> None:
    spec = inspect(directory(tmp_path, FIGURES))
    assert spec.architecture_figures is not None
    assert (spec.architecture_figures.layers, spec.architecture_figures.head_dim, spec.architecture_figures.kv_heads) == (2, 16, 2)
    assert spec.weight_bytes == (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "model.safetensors").unlink()
    planned = inspect_config(tmp_path)
    assert (planned.architecture_figures, planned.weight_bytes) == (spec.architecture_figures, None)
    assert (planned.context_length, planned.architecture, planned.model_type) == (1024, "Qwen2ForCausalLM", "LLM")
    with pytest.raises(ArtifactError, match=r"config\.json can.t be read"):
        inspect_config(tmp_path / "nowhere")


def test_all_parts_of_a_split_file_count(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"m[x]-0000{number}-of-00003.gguf").write_bytes(WHOLE + bytes(number))
    (tmp_path / "m[x]-00001-of-00002.gguf").write_bytes(WHOLE)
    assert inspect(tmp_path / "m[x]-00001-of-00003.gguf").weight_bytes == 3 * len(WHOLE) + 6
    assert inspect(tmp_path / "m[x]-00001-of-00003.gguf").architecture_figures is None


def test_pickled_weights_with_the_operators_opt_in(tmp_path: Path) -> None:
    _pickles(directory(tmp_path))
    spec = inspect(tmp_path, pickled=True)
    assert (spec.format, spec.pickled) == ("pytorch", True)
    assert spec.weight_bytes == sum(file.stat().st_size for file in tmp_path.glob("pytorch_model*.bin"))
    with pytest.raises(ArtifactError, match="XI_ALLOW_PICKLED_WEIGHTS=1"):
        inspect(tmp_path)


def test_safetensors_go_before_pickled_weights(tmp_path: Path) -> None:
    (directory(tmp_path) / "pytorch_model.bin").write_bytes(b"\x80")
    assert inspect(tmp_path, pickled=True).pickled is False
