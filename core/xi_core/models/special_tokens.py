"""The special tokens of a Hugging Face model: those that have a name and no text. Read from its files; called by engines over a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from xi_core.errors import ArtifactError

T = TypeVar("T")
_BRACKETED = re.compile(r"<.*>$", re.DOTALL)


class _Added(Struct):
    content: str
    special: bool = False
    id: int = -1


class _Tokenizer(Struct):
    added_tokens: list[_Added] = field(default_factory=list)


class _Config(Struct):
    added_tokens_decoder: dict[int, _Added] = field(default_factory=dict)


def special_tokens(directory: str, *, bracketed: bool = False) -> dict[str, int]:
    """Ids of the special tokens of the model in `directory` by their names, from both files that may tell them. Raises `ArtifactError`.

    `bracketed`: also of those in `<…>` that have a text, which llguidance takes for special when it reads a tokenizer itself.
    """
    config = _read(Path(directory, "tokenizer_config.json"), _Config()).added_tokens_decoder
    whole = {token.id: token for token in _read(Path(directory, "tokenizer.json"), _Tokenizer()).added_tokens}
    return {
        token.content: id for id, token in {**config, **whole}.items() if token.special or (bracketed and _BRACKETED.match(token.content))
    }


def _read(path: Path, missing: T) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type(missing))
    except FileNotFoundError:
        return missing
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from None
