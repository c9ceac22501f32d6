"""Random Qwen2 models, made from a seed when they are needed, in the forms that the engines read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.processes import ROOT

TOKENIZER = ROOT / "plugins" / "xi_plugins" / "families" / "xi_tiny" / "hf"
CONTEXT = 4096
SEED = 20


class Shape(msgspec.Struct, frozen=True):
    """Sizes of a model."""

    hidden: int
    inner: int
    layers: int
    heads: int


SHAPES = {"1 M": Shape(128, 448, 4, 4), "60 M": Shape(640, 2560, 10, 10)}
"""The smaller one's are xi-tiny's."""


class RandomModel(msgspec.Struct):
    """Where it lies: a Hugging Face directory (bfloat16) and a GGUF file (f16), and how many tokens it knows."""

    hf: Path
    gguf: Path
    vocabulary: int


def make(directory: Path) -> RandomModel:
    """Write the model of 60 M into `directory` in both forms; takes some seconds and 250 MB. Needs the package gguf."""
    import torch

    from training.xi_tiny.convert import convert

    half, gguf = directory / "half", directory / "random-60m.gguf"
    _save(_model(SHAPES["60 M"]).to(torch.float16), half)
    convert(half, gguf)
    shutil.rmtree(half)
    return RandomModel(hf=make_directory(directory / "random-60m"), gguf=gguf, vocabulary=_small()["bos_token_id"])


def make_directory(folder: Path) -> Path:
    """Write the model of 60 M into `folder` as Hugging Face does, in bfloat16."""
    import torch

    _save(_model(SHAPES["60 M"]).to(torch.bfloat16), folder)
    return folder


def make_endless(folder: Path, size: str, dtype: str = "float32") -> Path:
    """Write a model of that size (`1 M` or `60 M`) into `folder`, one that never ends a greedy answer: some token's logit is
    always above that of the end tokens, whose rows are zero."""
    import torch

    model = _model(SHAPES[size])
    with torch.no_grad():
        model.get_input_embeddings().weight[_small()["bos_token_id"] :] = 0
    _save(model.to(getattr(torch, dtype)), folder)
    return folder


def _small() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((TOKENIZER / "config.json").read_text(encoding="utf-8"))
    return found


def _model(shape: Shape) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small = _small()
    config = Qwen2Config(
        vocab_size=small["vocab_size"], hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        rope_parameters=small["rope_parameters"], bos_token_id=small["bos_token_id"], eos_token_id=small["eos_token_id"],
        pad_token_id=small["pad_token_id"],
    )  # fmt: skip
    torch.manual_seed(SEED)
    return Qwen2ForCausalLM(config)


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
