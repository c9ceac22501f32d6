"""What the stubs answer, to the byte the same in front of every gateway, and what the clients ask."""

from __future__ import annotations

import msgspec

MODEL = "stub"
CHAT = "/v1/chat/completions"
STEP = 0.004
"""Seconds between two steps of a stub engine."""

_HEAD = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"stub","choices":[{"index":0,'
CHUNK = _HEAD + b'"delta":{"content":" hello"},"finish_reason":null}]}\n\n'
LAST = _HEAD + b'"delta":{"content":" hello"},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"stub","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":" hello"},"finish_reason":"length"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}'
)
TOKEN = b" hello"
"""Stands once in the answer for each token."""


class Asked(msgspec.Struct):
    """What a stub reads of a request."""

    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    @property
    def tokens(self) -> int:
        """How many tokens to give. `sglang-router` sends the limit on under its newer name."""
        return self.max_completion_tokens or self.max_tokens or 1


read_asked = msgspec.json.Decoder(Asked).decode


def request(host: str, model: str = MODEL, *, stream: bool, max_tokens: int, path: str = CHAT, **fields: object) -> bytes:
    """A whole HTTP request. `fields` join the body's own; without a `prompt` or `messages` it is a conversation."""
    if not {"prompt", "messages"} & fields.keys():
        fields["messages"] = [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Say hello, and go on saying it."},
        ]
    body = msgspec.json.encode({"model": model, "temperature": 0, "max_tokens": max_tokens, "stream": stream, **fields})
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
