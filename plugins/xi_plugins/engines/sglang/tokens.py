"""What xi must know of a model's tokens: special ones, whose log-probabilities SGLang tells though they add no text, bytes of a character
that is cut, which it tells as a mark, and how many tokens there are, for it dies of an id that is none. Called by engine.py and pooling.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from xi_core.errors import InvalidRequest
from xi_core.models.inspect import read_json

MARK = "\ufffd"
"""What stands for bytes that make no character."""


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


def without_cut(data: bytes) -> bytes:
    """A streamed event without the mark at its end.

    SGLang keeps the bytes of a character back until it is whole, and at the answer's end gives a mark for what is left of one.
    """
    event = msgspec.json.decode(data)
    for choice in event.get("choices", []):
        for part, name in ((choice, "text"), *((choice.get("delta") or {}, name) for name in ("content", "reasoning_content"))):
            if part.get(name):
                part[name] = part[name].rstrip(MARK)
    return msgspec.json.encode(event)
