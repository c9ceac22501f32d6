"""Between xi's form of requests and events and that of OpenAI servers. Pure; `child_server.py` calls it, the second function per token."""

from __future__ import annotations

from typing import Any

import msgspec

from xi_core.engine.base import ApiRequest

_LOGPROBS = b'"logprobs":{'
_REASONING = b'"reasoning":'
_REASONS = ("stop_reason", "matched_stop")
"""Where vLLM and SGLang tell of the stop string that was found; null, or the end token's id, where it was an end token."""


def to_server(request: ApiRequest) -> dict[str, Any]:
    """The body for an OpenAI server: `developer` is OpenAI's newer name of a role that chat templates call `system`."""
    messages = request.body.get("messages")
    if messages is None:
        return request.body
    return {**request.body, "messages": [_message(message) for message in messages]}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"role": "system"} if message.get("role") == "developer" else message


def to_xi(data: bytes) -> bytes:
    """An event as the serving layer reads it: log-probabilities in chat's form, none of the end token; reasoning under its older name."""
    if _LOGPROBS not in data and _REASONING not in data:
        return data
    event = msgspec.json.decode(data)
    for choice in event.get("choices", []):
        delta = choice.get("delta") or {}
        if "reasoning" in delta:
            delta.setdefault("reasoning_content", delta.pop("reasoning"))
        if choice.get("logprobs"):
            entries = _entries(choice["logprobs"])
            choice["logprobs"] = {"content": entries[:-1] if _ends_with_end_token(choice) else entries}
    return msgspec.json.encode(event)


def _ends_with_end_token(choice: dict[str, Any]) -> bool:
    """vLLM tells of the end token, which has no text."""
    named = [choice[name] for name in _REASONS if name in choice]
    return choice.get("finish_reason") in ("stop", "tool_calls") and bool(named) and not isinstance(named[0], str)


def _entries(logprobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Chat's entries, from those of completions too, which are lists beside each other."""
    if "tokens" not in logprobs:
        content: list[dict[str, Any]] = logprobs.get("content") or []
        return content
    tokens = logprobs["tokens"]
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return [
        {"token": token, "logprob": value, "top_logprobs": _ranked(top or {})}
        for token, value, top in zip(tokens, logprobs["token_logprobs"], tops, strict=True)
        if value is not None
    ]


def _ranked(top: dict[str, float]) -> list[dict[str, Any]]:
    """Likeliest first; servers put the chosen token first."""
    return [{"token": token, "logprob": value} for token, value in sorted(top.items(), key=lambda one: -one[1])]
