"""What xi must know of a model's tokens: names of special ones, whose log-probabilities SGLang tells though they add no text, and how many
there are, for SGLang dies of an id that is none. Called by engine.py and pooling.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from xi_core.errors import ArtifactError, InvalidRequest
from xi_core.models.inspect import read_json

T = TypeVar("T")


class _Added(Struct):
    content: str
    special: bool = False


class _Tokenizer(Struct):
    added_tokens: list[_Added] = field(default_factory=list)


class _Config(Struct):
    added_tokens_decoder: dict[str, _Added] = field(default_factory=dict)


def special_names(directory: str) -> frozenset[str]:
    """Names of the special tokens of the Hugging Face model in `directory`, by both files that may tell them. Raises `ArtifactError`."""
    whole = _read(Path(directory, "tokenizer.json"), _Tokenizer()).added_tokens
    config = _read(Path(directory, "tokenizer_config.json"), _Config()).added_tokens_decoder.values()
    return frozenset(token.content for token in (*whole, *config) if token.special)


def vocabulary_size(directory: str) -> int | None:
    """Rows of the model's embedding, by its configuration; None where that doesn't say. Raises `ArtifactError`."""
    path = Path(directory, "config.json")
    config = read_json(path) if path.exists() else {}
    sizes = (part.get("vocab_size") for part in (config, config.get("text_config") or {}, config.get("llm_config") or {}))
    return next((size for size in sizes if isinstance(size, int)), None)


def check_ids(ids: Iterable[object], size: int | None, param: str) -> None:
    """Raises `InvalidRequest` for an id that no token has; what isn't a number is text, and fine."""
    wrong = next((id for id in ids if isinstance(id, int) and size is not None and not 0 <= id < size), None)
    if wrong is not None:
        raise InvalidRequest(f"{param}: {wrong} is no token's id: the model has {size} tokens", param=param)


def without_special(data: bytes, names: frozenset[str]) -> bytes:
    """A streamed event without the log-probabilities of special tokens; it has those of tokens in chat's form."""
    event = msgspec.json.decode(data)
    for choice in event.get("choices", []):
        if choice.get("logprobs"):
            entries = choice["logprobs"].get("content") or []
            choice["logprobs"] = {"content": [entry for entry in entries if entry["token"] not in names]}
    return msgspec.json.encode(event)


def _read(path: Path, missing: T) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type(missing))
    except FileNotFoundError:
        return missing
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from None
