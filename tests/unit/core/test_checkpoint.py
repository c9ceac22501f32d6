"""Reading a Hugging Face directory before its weights are loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from xi_core.errors import ArtifactError
from xi_core.models import checkpoint


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def safetensors(data: bytes = b"\0" * 8) -> bytes:
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_good_weights_pass(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    checkpoint.check_weights(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 12, 40, len(safetensors()) - 1])
def test_cut_off_weights_are_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors()[:cut])
    with pytest.raises(ArtifactError, match="download it again"):
        checkpoint.check_weights(tmp_path)


def test_damaged_header_is_refused(tmp_path: Path) -> None:
    damaged = bytearray(safetensors())
    damaged[8] = ord("x")
    (tmp_path / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ArtifactError, match="damaged"):
        checkpoint.check_weights(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    (tmp_path / "model-1.safetensors").write_bytes(safetensors())
    with pytest.raises(ArtifactError, match=r"not complete: model-2\.safetensors missing"):
        checkpoint.check_weights(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ArtifactError, match="only pickled weights"):
        checkpoint.check_weights(tmp_path)


def test_pickled_weights_need_the_operators_opt_in(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ArtifactError, match="XI_ALLOW_PICKLED_WEIGHTS=1"):
        checkpoint.check_weights(tmp_path)
    assert checkpoint.check_weights(tmp_path, pickled=True) is False
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    assert checkpoint.check_weights(tmp_path, pickled=True) is True


def test_opt_in_is_for_transformers_names_only(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"\x80")
    with pytest.raises(ArtifactError, match=r"only pickled weights \(training_args\.bin\)"):
        checkpoint.check_weights(tmp_path, pickled=True)


def test_missing_pickled_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_model.bin.index.json", {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}})
    (tmp_path / "pytorch_model-1.bin").write_bytes(b"\x80")
    with pytest.raises(ArtifactError, match=r"pytorch_model-2\.bin missing \(1 of 2\)"):
        checkpoint.check_weights(tmp_path, pickled=True)


def test_config_must_be_of_a_text_generation_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json is missing"):
        checkpoint.read_config(tmp_path)
    with pytest.raises(ArtifactError, match="no such directory"):
        checkpoint.read_config(tmp_path / "nowhere")
    write(tmp_path / "config.json", {"architectures": ["ViTForImageClassification"]})
    with pytest.raises(ArtifactError, match="ViTForImageClassification is not a text generation model"):
        checkpoint.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
        checkpoint.read_config(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [({"eos_token_id": 2}, {}, {2}), ({"eos_token_id": 2}, {"eos_token_id": [3, 4]}, {2, 3, 4}), ({"eos_token_id": None}, {}, set())],
)
def test_end_tokens(config: dict[str, Any], generation: dict[str, Any], ends: set[int]) -> None:
    assert checkpoint.end_tokens(config, generation) == ends


def test_default_sampling_only_where_the_model_samples() -> None:
    values = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_length": 99}
    assert checkpoint.default_sampling(values) == {}
    assert checkpoint.default_sampling({**values, "do_sample": False}) == {}
    assert checkpoint.default_sampling({**values, "do_sample": True}) == {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    more = {"do_sample": True, "min_p": 0.05, "repetition_penalty": 1.05, "no_repeat_ngram_size": 3}
    assert checkpoint.default_sampling(more) == {"min_p": 0.05, "repetition_penalty": 1.05}


def test_what_a_directory_recommends(tmp_path: Path) -> None:
    assert checkpoint.recommended_sampling(tmp_path) == {}
    write(tmp_path / "generation_config.json", {"do_sample": True, "temperature": 0.6})
    assert checkpoint.recommended_sampling(tmp_path) == {"temperature": 0.6}


def test_chat_template_from_file_text_or_list(tmp_path: Path) -> None:
    listed = {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}
    assert checkpoint.chat_template(tmp_path, {}) is None
    assert checkpoint.chat_template(tmp_path, {"chat_template": "X"}) == "X"
    assert checkpoint.chat_template(tmp_path, listed) == "D"
    (tmp_path / "chat_template.jinja").write_text("J", encoding="utf-8")
    assert checkpoint.chat_template(tmp_path, listed) == "J"


def test_named_tokens_as_text_and_as_objects(tmp_path: Path) -> None:
    write(tmp_path / "special_tokens_map.json", {"pad_token": {"content": "<pad>"}, "eos_token": "old"})
    found = checkpoint.named_tokens(
        tmp_path, {"eos_token": "</s>", "bos_token": {"content": "<s>"}, "unk_token": None, "add_bos_token": True}
    )
    assert found == {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}


def test_an_index_of_safetensors_that_names_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    with pytest.raises(ArtifactError, match=r"is damaged: it names 'pytorch_model\.bin'"):
        checkpoint.check_weights(tmp_path)


@pytest.mark.parametrize("named", ['"adapter_model.bin"', '"pytorch_model.bin.index.json"', "5"])
def test_weights_that_the_configuration_names(tmp_path: Path, named: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"transformers_weights": {named}}}')
    with pytest.raises(ArtifactError, match=r"config\.json names its weights"):
        checkpoint.check_weights(tmp_path)
