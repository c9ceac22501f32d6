"""Loading in the engine `transformers`: what is read from a model's files, and what can't be served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers_models import load  # noqa: E402

from xi_core.errors import ArtifactError, EngineError, UnknownOption, XiError  # noqa: E402

pytestmark = [pytest.mark.engine("transformers"), pytest.mark.usefixtures("one_torch_thread")]


def test_dtype_auto_on_a_cpu(tmp_path: Path, small_dir: Path) -> None:
    for stored, wanted in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)):
        directory = tmp_path / str(stored)
        transformers.AutoModelForCausalLM.from_pretrained(small_dir, dtype=stored).save_pretrained(directory)
        shutil.copy(small_dir / "tokenizer.json", directory)
        assert load(directory)._runner._dtype == wanted
    assert load(small_dir, dtype="bfloat16")._runner._dtype == torch.bfloat16


def test_recommended_sampling_and_end_tokens(tmp_path: Path, small_dir: Path) -> None:
    directory = shutil.copytree(small_dir, tmp_path / "m")
    generation = {"do_sample": True, "temperature": 0.6, "top_k": 20, "eos_token_id": [4, 5]}
    (directory / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    engine = load(directory)
    assert engine.default_sampling == {"temperature": 0.6, "top_k": 20}
    assert engine._ends == {0, 4, 5}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"architectures": ["BertModel"]}, ArtifactError, "not a text generation model"),
        ({"model_type": "nonesuch"}, ArtifactError, "can't load this model"),
        ({"model_type": "nonesuch", "auto_map": {"AutoConfig": "evil.Evil"}}, ArtifactError, "launch it with --trust-remote-code"),
        ({"model_type": "t5"}, ArtifactError, "not a text generation model"),
        ({"num_hidden_layers": 3}, ArtifactError, r"lacks 9 weights of the model, the first is model\.layers\.2"),
        ({"hidden_size": 64}, ArtifactError, "weights can't be loaded"),
        ({"model_type": "mistral", "sliding_window": 128}, EngineError, "launch it with --context-length 128"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}},
            EngineError,
            "launch it with --context-length 64",
        ),
        ({"model_type": "mamba"}, EngineError, "full attention"),
    ],
)
def test_what_cannot_be_served_is_said_in_words(
    tmp_path: Path, small_dir: Path, changes: dict[str, Any], error: type[XiError], words: str
) -> None:
    directory = shutil.copytree(small_dir, tmp_path / "m")
    edit(directory / "config.json", **changes)
    (directory / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    with pytest.raises(error, match=words):
        load(directory)


def test_damaged_files_are_named(tmp_path: Path, small_dir: Path) -> None:
    directory = shutil.copytree(small_dir, tmp_path / "m")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="download it again"):
        load(directory)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"no model\.safetensors"):
        load(directory)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path, small_dir: Path) -> None:
    directory = shutil.copytree(small_dir, tmp_path / "m")
    (directory / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="no tokenizer"):
        load(directory)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(small_dir: Path) -> None:
    with pytest.raises(UnknownOption, match="finds no CUDA device") as caught:
        load(small_dir, device="cuda:0")
    assert caught.value.param == "device"
