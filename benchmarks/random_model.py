"""A random Qwen2 model of 60 M parameters, made from a seed when it is needed, in both forms that the engines read."""

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


class RandomModel(msgspec.Struct):
    """Where it lies: a Hugging Face directory (bfloat16) and a GGUF file (f16), and how many tokens it knows."""

    hf: Path
    gguf: Path
    vocabulary: int


def make(directory: Path) -> RandomModel:
    """Write the model into `directory`; takes some seconds and 250 MB."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from training.xi_tiny.convert import convert

    small = json.loads((TOKENIZER / "config.json").read_text(encoding="utf-8"))
    config = Qwen2Config(
        vocab_size=small["vocab_size"], hidden_size=640, intermediate_size=2560, num_hidden_layers=10, num_attention_heads=10,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True, rope_parameters=small["rope_parameters"],
        bos_token_id=small["bos_token_id"], eos_token_id=small["eos_token_id"], pad_token_id=small["pad_token_id"],
    )  # fmt: skip
    torch.manual_seed(SEED)
    model: Any = Qwen2ForCausalLM(config)
    hf, half, gguf = directory / "random-60m", directory / "half", directory / "random-60m.gguf"
    for folder, dtype in ((hf, torch.bfloat16), (half, torch.float16)):
        model.to(dtype).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / name, folder / name)
    convert(half, gguf)
    shutil.rmtree(half)
    return RandomModel(hf=hf, gguf=gguf, vocabulary=small["bos_token_id"])
