"""Answers with log-probabilities: an entry for every token, stop strings or not. Used by `engine.py`.

llama.cpp holds text back while it might begin a stop string, and in chat it drops the log-probabilities of what it held. Such a request
is sent without its stop strings, and they are matched here: then the entry of every token comes, but for the
end token, which has no text.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xi_core.serving.stops import StopMatcher


class StopStream:
    """The events of one answer, rewritten. llama.cpp must be asked for `timings_per_token`, which tell the usage at any moment."""

    def __init__(self, stops: list[str], *, chat: bool) -> None:
        self._matcher = StopMatcher(stops)
        self._chat = chat
        self._entries: list[Any] = []

    def feed(self, data: str) -> tuple[str, bool]:
        """The event to pass on, and whether a stop string has ended the answer."""
        event = msgspec.json.decode(data)
        if not event["choices"]:
            return data, False
        choice = event["choices"][0]
        text = self._matcher.feed(self._text(choice))
        if choice.get("logprobs"):
            self._entries.extend(choice["logprobs"]["content"])
        ended = self._matcher.found is not None
        if ended:
            choice["finish_reason"] = "stop"
            event["usage"] = _usage(event["timings"])
        elif choice["finish_reason"] is not None:
            text += self._matcher.finish()
        self._put(choice, text)
        return msgspec.json.encode(event).decode(), ended

    def _text(self, choice: dict[str, Any]) -> str:
        text: str | None = choice["delta"].get("content") if self._chat else choice["text"]
        return text or ""

    def _put(self, choice: dict[str, Any], text: str) -> None:
        if not self._chat:
            choice["text"] = text
        elif text or "content" in choice["delta"]:
            choice["delta"]["content"] = text
        choice["logprobs"] = {"content": self._entries} if text and self._entries else None
        if text:
            self._entries = []


def _usage(timings: dict[str, Any]) -> dict[str, int]:
    prompt, answer = timings["cache_n"] + timings["prompt_n"], timings["predicted_n"]
    return {"completion_tokens": answer, "prompt_tokens": prompt, "total_tokens": prompt + answer}
