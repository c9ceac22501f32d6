"""What xi must know of a model's tokens: special ones, whose log-probabilities SGLang tells though they add no text, bytes of a character
that is cut, which it tells as a mark, and how many tokens there are, for it dies of an id that is none. Called by engine.py and pooling.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from xi_core.errors import InvalidRequest
from xi_core.models.inspect import read_json

MARK = "\ufffd"
"""What stands for bytes that make no character."""
_WRITTEN = ("reasoning_content", "content", "text", "tool_calls")
"""Fields of an event that hold what the model wrote, in its order."""


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


def without_cut(data: bytes, held: dict[str, str]) -> bytes:
    """A streamed event without the marks at its end. `held` keeps them, by field, for the request's next event.

    SGLang keeps the bytes of a character back until it is whole, and at the answer's end gives a mark for what is left of one. Marks that
    more text follows are the model's own and come before that text; those that the finish follows, in chats by an event of its own, stay
    out. So a U+FFFD that the model itself ends an answer with is lost: SGLang doesn't tell it from a cut.
    """
    event = msgspec.json.decode(data)
    for choice in event.get("choices", []):
        part = choice if "text" in choice else choice.get("delta") or {}
        written = [name for name in _WRITTEN if part.get(name)]
        if written:
            for name, marks in held.items():
                part[name] = marks + (part.get(name) or "")
            held.clear()
            _hold(part, written[-1], held)
        if choice.get("finish_reason"):
            held.clear()
    return msgspec.json.encode(event)


def _hold(part: dict[str, Any], last: str, held: dict[str, str]) -> None:
    """Move the marks that end the field `last` to `held`."""
    text = part[last]
    if isinstance(text, str) and text.endswith(MARK):
        part[last] = text.rstrip(MARK)
        held[last] = text[len(part[last]) :]
