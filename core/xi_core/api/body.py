"""Encoding a request's body and decoding it, and saying in words what is wrong with it.

Encoding is for the client and for offline use, decoding for the gateway's routes and the replica.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from xi_core.errors import InvalidRequest

T = TypeVar("T")

_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`")
"""How msgspec names one of the body itself; within it the place would follow."""
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def encode_body(body: Any) -> bytes:
    """`body` as JSON; what is JSON already, a `Raw`, as it is.

    Raises `InvalidRequest` for text that is not UTF-8, and for nan or an infinity, with its field.
    """
    try:
        data = msgspec.json.encode(body)
    except UnicodeEncodeError:  # Python reads other bytes as surrogates, which no encoding has
        raise InvalidRequest("the text is not UTF-8: write it, or convert its file, in that encoding") from None
    if b"null" in data and not isinstance(body, msgspec.Raw):  # so they would be written, and taken for a field that asks for nothing
        _check_numbers(msgspec.to_builtins(body))
    return data


def _check_numbers(body: Any) -> None:
    left: list[tuple[str, Any]] = [("", body)]
    while left:
        field, value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(
                f"{field}: {value} is no finite number, and JSON has no other; give one, or leave the field out", param=field
            )
        if isinstance(value, dict):
            left += [(f"{field}.{name}" if field else str(name), item) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            left += [(f"{field}[{number}]", item) for number, item in enumerate(value)]


def decode_body(decode: Callable[[bytes], T], body: bytes) -> T:
    """`decode(body)`. Raises `InvalidRequest`: not JSON (with the position), or a field that isn't as it should be (with its name)."""
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid_json(error, body) from None


def decode_request(decode: Callable[[bytes], T], body: bytes) -> T:
    """`decode_body` of an inference request, in which null asks for nothing, also in fields that xi doesn't know: some clients send all
    that OpenAI's API has.
    """
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        if _UNKNOWN.fullmatch(str(error)):
            body = msgspec.json.encode({name: value for name, value in _fields(body).items() if bytes(value) != b"null"})
        return decode_body(decode, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid_json(error, body) from None


def _invalid_json(error: Exception, body: bytes) -> InvalidRequest:
    if isinstance(error, msgspec.ValidationError):
        return invalid_field(error)
    if isinstance(error, RecursionError):
        return InvalidRequest("the body is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(f"the body is not valid UTF-8: {error.reason}")
    place = "" if "(byte" in str(error) else f" (byte {len(body)})"
    return InvalidRequest(f"the body is not valid JSON: {error}{place}")


def invalid_field(error: msgspec.ValidationError) -> InvalidRequest:
    """msgspec's complaint about one field, with the field as `param`."""
    text = str(error)
    path = re.search(r" - at `\$\.?(.*?)`$", text)
    named = re.search(r"(?:unknown|required) field `([^`]+)`", text)
    param = ".".join(part for part in (path[1] if path else "", named[1] if named else "") if part) or None
    if param is not None and param.startswith("["):  # a place in the body that has no name: msgspec knows no more
        param = None
    text = text[: path.start()] if path else text
    return InvalidRequest(f"{param}: {text}" if param else f"the body: {text}", param=param)
