"""Small pieces of raw ASGI that the token path, the auth layer and the front share: types, a whole answer, a bounded body."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from xi_core.errors import ErrorBody, PayloadTooLarge, envelope

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"
PIECE = 64 * 1024
"""Bytes of an answer that are given to the server at once: it takes the next ones when the client has taken most of those before."""

_prefix = secrets.token_hex(6)
_numbers = itertools.count(1)


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


def new_request_id() -> str:
    """An id that no other request has, in any gateway."""
    return f"req-{_prefix}-{next(_numbers):06x}"


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of this (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def retry_after_header(seconds: float | None) -> Headers:
    """`Retry-After` in whole seconds, or nothing."""
    return [] if seconds is None else [(b"retry-after", b"%d" % max(1, math.ceil(seconds)))]


async def send_whole(
    send: Send, status: int, body: bytes, request_id: str, content_type: bytes = JSON, extra: Headers | None = None
) -> None:
    """Send an answer that is whole already."""
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    sent = 0
    while len(body) - sent > PIECE:
        await send({"type": "http.response.body", "body": body[sent : sent + PIECE], "more_body": True})
        sent += PIECE
    await send({"type": "http.response.body", "body": body[sent:], "more_body": False})


async def send_error(send: Send, error: ErrorBody, request_id: str, extra: Headers | None = None) -> None:
    """Send an error in OpenAI's envelope."""
    extra = [*retry_after_header(error.retry_after), *(extra or [])]
    await send_whole(send, error.status, envelope(error), request_id, extra=extra)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body. Raises `PayloadTooLarge` over `limit` bytes, as early as can be told, and `ClientGone`."""
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request body is over the limit of {limit} bytes; send less, or raise XI_MAX_BODY on the server")
