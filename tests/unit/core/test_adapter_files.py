"""`xi_core.models.adapter`: what a LoRA adapter's directory must hold."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from xi_core.errors import ArtifactError
from xi_core.models.adapter import CONFIG, WEIGHTS, read_adapter
from xi_core.wire.plan import LoraModule


def adapter(directory: Path, **config: Any) -> LoraModule:
    """A directory in peft's form, with one weight of four bytes."""
    directory.mkdir(exist_ok=True)
    (directory / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8, **config}))
    header = json.dumps({"x.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return LoraModule(name="sql", path=str(directory))


def test_what_engines_want_of_it(tmp_path: Path) -> None:
    found = read_adapter(adapter(tmp_path / "a", lora_alpha=16))
    assert (found.directory, found.weights, found.rank, found.config["lora_alpha"]) == (tmp_path / "a", tmp_path / "a" / WEIGHTS, 8, 16)
    assert read_adapter(adapter(tmp_path / "b", rank_pattern={"q_proj": 32, "k_proj": 4})).rank == 32


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA is served"),
        ({"r": 0}, "r, the rank, is to be a number from 1 on"),
        ({"r": True}, "r, the rank"),
        ({"r": None}, "r, the rank"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern"),
        ({"rank_pattern": [4]}, "rank_pattern"),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        read_adapter(adapter(tmp_path / "a", **config))
    assert "LoRA module 'sql'" in caught.value.message
    assert CONFIG in caught.value.message
    assert caught.value.param == "lora_modules"


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    def refused(module: LoraModule) -> str:
        with pytest.raises(ArtifactError) as caught:
            read_adapter(module)
        return caught.value.message

    assert "is no directory" in refused(LoraModule(name="sql", path=str(tmp_path / "nowhere")))
    assert "no such home directory" in refused(LoraModule(name="sql", path="~nobody-of-that-name/a"))
    module = adapter(tmp_path / "a")
    weights = tmp_path / "a" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{weights} is damaged" in refused(module)
    weights.unlink()
    assert refused(module).endswith(f"{weights} is missing")
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"\x80\x04N.")
    assert "no pickled weights (adapter_model.bin)" in refused(module)
    (tmp_path / "a" / CONFIG).write_text("{")
    assert f"{CONFIG} is damaged" in refused(module)
    (tmp_path / "a" / CONFIG).unlink()
    assert f"{CONFIG} is missing" in refused(module)
