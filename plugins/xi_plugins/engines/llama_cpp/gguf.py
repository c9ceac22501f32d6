"""What the engine asks of a GGUF file, taken from the core's reading of its header. Called by `engine.py` before it loads the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from xi_core.models.gguf import Metadata, read_metadata


class Header(Struct, kw_only=True, frozen=True):
    """What the engine asks of a GGUF file. `kv_values` is the number of cache values that one token takes, over all layers."""

    architecture: str
    context_length: int
    vocabulary_size: int
    kv_values: int
    has_chat_template: bool
    size: int
    layers: int = 0
    """0 where the file doesn't tell."""
    sampling: dict[str, Any] = {}
    """Values that the file recommends."""


def read_header(path: Path) -> Header:
    """The header of the file at `path`. Raises `ArtifactError` for a file that is missing, no GGUF or cut off."""
    metadata = read_metadata(path)
    tokens = metadata.values.get("tokenizer.ggml.tokens")
    return Header(
        architecture=metadata.architecture,
        context_length=metadata.number("context_length"),
        vocabulary_size=tokens if isinstance(tokens, int) else 0,
        kv_values=_kv_values(metadata),
        has_chat_template="tokenizer.chat_template" in metadata.values,
        size=metadata.size,
        layers=metadata.number("block_count"),
        sampling=metadata.sampling,
    )


def _kv_values(metadata: Metadata) -> int:
    """An upper bound: layers without attention are counted too, unless they say that they have no heads."""
    heads = metadata.numbers("attention.head_count")
    kv_heads = metadata.numbers("attention.head_count_kv") or heads
    most = max(heads, default=0)
    size = metadata.number("embedding_length") // most if most else 0
    key = metadata.number("attention.key_length") or size
    value = metadata.number("attention.value_length") or size
    all_heads = metadata.number("block_count") * kv_heads[0] if len(kv_heads) == 1 else sum(kv_heads)
    return all_heads * (key + value)
