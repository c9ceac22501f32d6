"""What an OpenAI server says when it refuses or fails, in xi's words. Pure; called by `child_server.py` and by engines built on it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from xi_core.engine.base import ApiRequest
from xi_core.errors import ContextLengthExceeded, Overloaded, Unavailable

_TOO_LONG = re.compile(r"context.length|longer than the model|maximum.*length.*tokens|prompt is too long", re.IGNORECASE)
_GRAMMAR = re.compile(r"grammar|regex|schema|structured", re.IGNORECASE)
_POOLED = ("documents", "input")
"""Fields of requests for vectors and scores, which have no other that could be at fault."""
_BUSY = {429: Overloaded.code, 503: Unavailable.code}


class Refusal(Struct, kw_only=True):
    """Why a request failed, as `ApiSink.failed` takes it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None


def refusal_of(engine: str, request: ApiRequest, status: int, data: bytes) -> Refusal:
    """The refusal that an error object tells of: `{"error": {...}}`, or the object itself as SGLang has it."""
    error = _error(data)
    message = str(error.get("message") or data[:500].decode("utf-8", "replace") or "it gave no reason")
    code = error.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    if status in _BUSY:
        return Refusal(status=status, message=f"{engine} takes no request now: {message}", code=_BUSY[status])
    if status in (401, 403) or not 400 <= status < 500:
        return Refusal(status=500, message=f"{engine} failed: {message}")
    prompt = next((name for name in ("messages", "prompt", *_POOLED) if name in request.body), "prompt")
    if _TOO_LONG.search(message):
        return Refusal(status=400, message=message, param=prompt, code=ContextLengthExceeded.code)
    param = _param(request, error.get("param"), message) or (prompt if prompt in _POOLED else None)
    return Refusal(status=400, message=f"{engine} refused the request: {message}", param=param)


def _error(data: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return {}
    inner = found.get("error", found) if isinstance(found, dict) else found
    return inner if isinstance(inner, dict) else {"message": inner}


def _param(request: ApiRequest, given: Any, message: str) -> str | None:
    """The field of the request that is at fault: what the server names, else what its message names."""
    if given in request.body:
        return str(given)
    if (outputs := request.body.get("structured_outputs")) and _GRAMMAR.search(message):
        return f"structured_outputs.{next(iter(outputs))}"
    return next((name for name in request.body if re.search(rf"\b{re.escape(name)}\b", message)), None)
