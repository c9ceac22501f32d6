"""The special tokens of a Hugging Face model: those that have a name and no text. Read from its files; called by engines over a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from xi_core.errors import ArtifactError

T = TypeVar("T")
_BRACKETED = re.compile(r"<.*>$", re.DOTALL)


class Added(Struct, kw_only=True):
    """A token beside the vocabulary's, as both files write it; `tokenizer_config.json` has its id for a key."""

    content: str
    special: bool = False


class _Listed(Added, kw_only=True):
    id: int


class _Tokenizer(Struct):
    added_tokens: list[_Listed] | None = None


class _Config(Struct):
    added_tokens_decoder: dict[int, Added] | None = None


def special_tokens(directory: str, *, bracketed: bool = False) -> dict[str, int]:
    """Ids of the special tokens of the model in `directory` by their names, from both files that may tell them. Raises `ArtifactError`.

    `bracketed`: also of those in `<…>` that have a text, which llguidance takes for special when it reads a tokenizer itself.
    """
    return special_of(added_tokens(directory), bracketed=bracketed)


def special_of(added: Mapping[int, Added], *, bracketed: bool = False) -> dict[str, int]:
    """What `special_tokens` answers, of tokens that were read before."""
    return {token.content: id for id, token in added.items() if token.special or (bracketed and _BRACKETED.match(token.content))}


def added_tokens(directory: str) -> dict[int, Added]:
    """The tokens that were added to the vocabulary, by their ids; `tokenizer.json`, which may be tens of MB, has the last word on each.

    Raises `ArtifactError`.
    """
    config = _read(Path(directory, "tokenizer_config.json"), _Config()).added_tokens_decoder or {}
    whole = _read(Path(directory, "tokenizer.json"), _Tokenizer()).added_tokens or []
    return {**config, **{token.id: token for token in whole}}


def _read(path: Path, missing: T) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type(missing))
    except FileNotFoundError:
        return missing
    except (OSError, ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError of another kind
        raise ArtifactError(f"{path} can't be read: {error}") from None
