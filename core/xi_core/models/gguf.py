"""The reader of GGUF metadata: the keys of the header that xi uses, never tensors. Called by `inspect.py` and by engines that run GGUF.

Layout, little endian: magic `GGUF`, version u32, tensor count u64, pair count u64, then pairs of key, type and value; a string is a u64
length and bytes. See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file may be hostile: every count and length is bounded.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from msgspec import Struct

from xi_core.errors import ArtifactError
from xi_core.models.sampling import recommended

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS = 10_000
LONGEST_KEY = 65_535
LONGEST_STRING = 4 * 1024 * 1024
"""Longest string that is read; a longer one that isn't wanted is skipped."""
MOST_STRINGS = 4_000_000
"""Strings in one array: the largest vocabularies have about 300,000."""
MOST_NUMBERS = 512
"""Longest array of numbers that is read, one for each layer: llama.cpp's own bound on layers. A longer one is skipped."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

WANTED = ("general.architecture", "general.name", "general.size_label", "general.file_type", "tokenizer.chat_template")
WANTED_ENDINGS = (
    ".context_length",
    ".block_count",
    ".embedding_length",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
    ".attention.key_length_mla",
    ".attention.value_length_mla",
    ".attention.q_lora_rank",
    ".attention.kv_lora_rank",
    ".attention.sliding_window",
    ".rope.dimension_count",
    ".feed_forward_length",
    ".expert_count",
    ".expert_used_count",
    ".expert_shared_count",
    ".expert_feed_forward_length",
    ".leading_dense_block_count",
    ".pooling_type",
)
SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
"""Sampling values that a file recommends, and what xi calls them (gguf-py/gguf/constants.py of llama.cpp)."""
COUNTED = ("tokenizer.ggml.tokens",)
"""Arrays of which only the length is wanted."""

FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l",
    14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k", 19: "iq2_xxs", 20: "iq2_xs", 21: "q2_k_s", 22: "iq3_xs",
    23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl", 26: "iq3_s", 27: "iq3_m", 28: "iq2_s", 29: "iq2_m", 30: "iq4_xs", 31: "iq1_m", 32: "bf16",
    36: "tq1_0", 37: "tq2_0", 38: "mxfp4",
}  # fmt: skip
"""Names of `general.file_type`."""

Number = int | float | bool
Value = Number | str | tuple[Number, ...]


class Metadata(Struct, frozen=True):
    """What a GGUF file tells of its model: the wanted keys, as in the file. Of the arrays in `COUNTED`, `values` holds the length."""

    architecture: str
    values: dict[str, Value]
    size: int
    """Bytes of the whole file."""

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling values that the file recommends, by xi's names. 32 bits of 0.6 are told as 0.6."""
        found = {name: self.values.get(key) for key, name in SAMPLING.items()}
        return recommended({name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()})

    def number(self, name: str) -> int:
        """The architecture's own value `name`, such as `context_length`; 0 if the file doesn't tell it as a positive whole number."""
        return next(iter(self.numbers(name)), 0)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The same where a file may give one number for all layers or one for each; empty if it gives none."""
        found = self.values.get(f"{self.architecture}.{name}", ())
        values = found if isinstance(found, tuple) else (found,)
        return tuple(value if isinstance(value, int) and value > 0 else 0 for value in values)


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF file does, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_metadata(path: Path) -> Metadata:
    """The metadata of the GGUF file at `path`. Raises `ArtifactError` if it isn't one, is cut short or names no architecture."""
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ArtifactError(f"{path} is not a GGUF file: it doesn't begin with 'GGUF'; download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).metadata()
    except OSError as error:
        raise ArtifactError(f"{path} can't be read: {error.strerror or error}") from None


class _Reader:
    """A position in the mapped file that can't leave it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._size = path, data, 4, len(data)

    def metadata(self) -> Metadata:
        values = self._pairs()
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise ArtifactError(f"{self._path} holds no model: its metadata has no general.architecture")
        return Metadata(architecture, values, self._size)

    def _pairs(self) -> dict[str, Value]:
        version = self._number(_U32)
        if version not in VERSIONS:
            raise ArtifactError(f"{self._path}: GGUF version {version} is not supported (only {VERSIONS[0]} and {VERSIONS[1]})")
        self._number(_U64)  # tensors
        count = self._number(_U64)
        if count > MOST_KEYS:
            raise self._damaged(f"{count} metadata keys")
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._string(LONGEST_KEY)
            kind = self._number(_U32)
            if key in COUNTED and kind == _ARRAY:
                found[key] = self._array()[1]
            elif key in WANTED or key in SAMPLING or key.endswith(WANTED_ENDINGS):
                value = self._value(kind)
                if value is not None:
                    found[key] = value
            else:
                self._skip_value(kind)
        return found

    def _value(self, kind: int) -> Value | None:
        if kind == _STRING:
            return self._string(LONGEST_STRING)
        if kind in _SCALARS:
            form = struct.Struct(_SCALARS[kind])
            value: Number = form.unpack_from(self._data, self._advance(form.size))[0]
            return value
        if kind == _ARRAY:
            return self._array()[0]
        self._skip_value(kind)
        return None

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._advance(self._number(_U64))
        elif kind in _SCALARS:
            self._advance(struct.calcsize(_SCALARS[kind]))
        elif kind == _ARRAY:
            self._array()
        else:
            raise self._damaged(f"value type {kind}")

    def _array(self) -> tuple[tuple[Number, ...] | None, int]:
        """Pass an array. Answers its numbers, if it holds no more than `MOST_NUMBERS` and nothing else, and its length."""
        kind, count = self._number(_U32), self._number(_U64)
        if kind in _SCALARS:
            start = self._advance(struct.calcsize(_SCALARS[kind]) * count)
            if count <= MOST_NUMBERS:
                return struct.unpack_from(f"<{count}{_SCALARS[kind][1]}", self._data, start), count
        elif kind == _STRING and count <= MOST_STRINGS:
            for _ in range(count):
                self._advance(self._number(_U64))
        else:
            raise self._damaged(f"an array of {count} values of type {kind}")
        return None, count

    def _string(self, longest: int) -> str:
        length = self._number(_U64)
        if length > longest:
            raise self._damaged(f"a text of {length} bytes")
        start = self._advance(length)
        return self._data[start : start + length].decode("utf-8", "replace")

    def _number(self, form: struct.Struct) -> int:
        value: int = form.unpack_from(self._data, self._advance(form.size))[0]
        return value

    def _advance(self, size: int) -> int:
        start = self._at
        if size > self._size - start:
            raise ArtifactError(f"{self._path} is cut short: its metadata ends beyond its {self._size} bytes; download it again")
        self._at = start + size
        return start

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self._path} is damaged or no GGUF file: its metadata claims {what}; download it again")
