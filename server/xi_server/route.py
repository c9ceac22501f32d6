"""`Route`: all that the gateway reads of a request's body. The rest is the replica's to judge."""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Struct, UnsetType

from xi_core.errors import InvalidRequest

DEFAULT_TOKENS = 256
"""What a request is taken to cost when it doesn't say how many tokens it wants."""


class Route(Struct):
    """Fields that decide where a request goes; all others are skipped without being built."""

    model: str | UnsetType = UNSET
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    @property
    def most_tokens(self) -> int | None:
        """The request's own limit of tokens."""
        return self.max_completion_tokens or self.max_tokens


_decode = msgspec.json.Decoder(Route).decode


def read_route(body: bytes) -> Route:
    """The route fields of `body`. Raises `InvalidRequest`: not JSON (with the position), or a field of the wrong type."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(error, body) from None


def invalid_body(error: Exception, body: bytes) -> InvalidRequest:
    """What is wrong with a JSON body, in words, with the field or the position."""
    text = str(error)
    if isinstance(error, RecursionError):
        return InvalidRequest("the body is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(f"the body is not valid UTF-8: {error.reason}")
    if not isinstance(error, msgspec.ValidationError):
        place = "" if "(byte" in text else f" (byte {len(body)})"
        return InvalidRequest(f"the body is not valid JSON: {text}{place}")
    path = re.search(r" - at `\$\.?(.*?)`$", text)
    named = re.search(r"(?:unknown|required) field `([^`]+)`", text)
    param = ".".join(part for part in (path[1] if path else "", named[1] if named else "") if part) or None
    text = text[: path.start()] if path else text
    return InvalidRequest(f"{param}: {text}" if param else f"the body: {text}", param=param)
