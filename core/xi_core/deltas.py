"""Streamed answers as the client gives them: deltas, read of a server's events."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import msgspec
from msgspec import Struct

from xi_core.api.openai import Usage
from xi_core.errors import ErrorBody, XiError


class Delta(Struct, kw_only=True):
    """One piece of a streamed answer. `finish_reason` comes with the last piece of a choice, `usage` after all (where asked for)."""

    text: str = ""
    reasoning: str = ""
    index: int = 0
    tool_calls: list[dict[str, Any]] = msgspec.field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None


Deltas = Generator[Delta, None, None]


class _Piece(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    delta: _Piece = msgspec.field(default_factory=_Piece)
    finish_reason: str | None = None


class Event(Struct):
    """One event of a stream of the OpenAI API, as far as it is read."""

    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    error: ErrorBody | None = None


def deltas(events: Generator[Event, None, None]) -> Deltas:
    """The deltas of a stream of events, which is closed when they are."""
    with closing(events):
        for event in events:
            yield from _read(event)


def _read(event: Event) -> Deltas:
    """The deltas of one event. Raises the error that it carries."""
    if event.error is not None:
        raise XiError.from_body(event.error)
    for choice in event.choices:
        piece = choice.delta
        yield Delta(
            text=choice.text or piece.content or "",
            reasoning=piece.reasoning_content or "",
            index=choice.index,
            tool_calls=piece.tool_calls or [],
            finish_reason=choice.finish_reason,
        )
    if event.usage is not None:
        yield Delta(usage=event.usage)
