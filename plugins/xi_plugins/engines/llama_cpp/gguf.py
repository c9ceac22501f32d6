"""Reads the header of a GGUF file: the metadata that tells what a model needs. Called by `engine.py` before it loads the model.

Layout, little endian: magic `GGUF`, version u32, tensor count u64, pair count u64, then pairs of key, type and value; strings are a u64
length and bytes. See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

from xi_core.errors import ArtifactError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_PAIRS = 65536
_MAX_TEXT = 64 * 1024 * 1024
_MAX_ITEMS = 16 * 1024 * 1024
_KEPT_ITEMS = 4096


class Header(Struct, kw_only=True, frozen=True):
    """What the engine asks of a GGUF file. `kv_values` is the number of cache values that one token takes, over all layers."""

    architecture: str
    context_length: int
    vocabulary_size: int
    kv_values: int
    has_chat_template: bool
    size: int


def read_header(path: Path) -> Header:
    """The header of the file at `path`. Raises `ArtifactError` for a file that is missing, no GGUF or cut off."""
    try:
        with path.open("rb") as file:
            return _header(_pairs(file), path.stat().st_size)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, struct.error, RecursionError) as error:
        raise ArtifactError(f"{path} is not a usable GGUF file: {error}; download or convert it again") from None


def _header(pairs: dict[str, Any], size: int) -> Header:
    architecture = str(pairs.get("general.architecture", ""))
    if not architecture:
        raise ValueError("it does not name its architecture")
    return Header(
        architecture=architecture,
        context_length=_number(pairs.get(f"{architecture}.context_length")),
        vocabulary_size=_number(pairs.get("tokenizer.ggml.tokens")),
        kv_values=_kv_values(pairs, architecture),
        has_chat_template="tokenizer.chat_template" in pairs,
        size=size,
    )


def _kv_values(pairs: dict[str, Any], architecture: str) -> int:
    """An upper bound: layers without attention are counted too, unless they say that they have no heads."""
    layers = _number(pairs.get(f"{architecture}.block_count"))
    heads = pairs.get(f"{architecture}.attention.head_count", 0)
    kv_heads = pairs.get(f"{architecture}.attention.head_count_kv", heads)
    most = max(heads) if isinstance(heads, list) and heads else _number(heads)
    size = _number(pairs.get(f"{architecture}.embedding_length")) // most if most else 0
    key = _number(pairs.get(f"{architecture}.attention.key_length")) or size
    value = _number(pairs.get(f"{architecture}.attention.value_length")) or size
    all_heads = sum(kv_heads) if isinstance(kv_heads, list) else layers * _number(kv_heads)
    return all_heads * (key + value)


def _number(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _pairs(file: BinaryIO) -> dict[str, Any]:
    """The metadata. Of a long array, such as the vocabulary, only the length is kept."""
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = _scalar(file, "<I")
    if version not in _VERSIONS:
        raise ValueError(f"its GGUF version is {version}, known are {_VERSIONS[0]} and {_VERSIONS[1]}")
    _scalar(file, "<Q")
    count = _scalar(file, "<Q")
    if count > _MAX_PAIRS:
        raise ValueError(f"it claims {count} metadata entries")
    pairs: dict[str, Any] = {}
    for _ in range(count):
        key = _text(file)
        pairs[key] = _value(file, _scalar(file, "<I"))
    return pairs


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        return _array(file)
    if kind not in _SCALARS:
        raise ValueError(f"it has a value of unknown type {kind}")
    return _scalar(file, _SCALARS[kind])


def _array(file: BinaryIO) -> list[Any] | int:
    kind, count = _scalar(file, "<I"), _scalar(file, "<Q")
    if count > _MAX_ITEMS:
        raise ValueError(f"it claims a list of {count} items")
    if kind in _SCALARS and count > _KEPT_ITEMS:
        _exactly(file, struct.calcsize(_SCALARS[kind]) * count)
        return int(count)
    items = [_value(file, kind) for _ in range(count)]
    return items if kind in _SCALARS else int(count)


def _scalar(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]


def _text(file: BinaryIO) -> str:
    length = _scalar(file, "<Q")
    if length > _MAX_TEXT:
        raise ValueError(f"it claims a text of {length} bytes")
    return _exactly(file, length).decode("utf-8", "replace")


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends in the middle of its header")
    return data
