"""Answers with log-probabilities: an entry for every token, stop strings or not. Used by `engine.py`.

llama.cpp holds text back while it might begin a stop string, and in chat it drops the log-probabilities of what it held. Such a request
is sent without its stop strings, and they are matched here, in the reasoning as well as in the content: then the entry of every token
comes, but for the end token, which has no text.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xi_core.serving.stops import StopMatcher
from xi_plugins.engines.llama_cpp.unparsed import usage_of


class StopStream:
    """The events of one answer, rewritten. llama.cpp must be asked for `timings_per_token`, which tell the usage at any moment."""

    def __init__(self, stops: list[str], *, chat: bool) -> None:
        self._matcher = StopMatcher(stops)
        self._chat = chat
        self._fields = ("reasoning_content", "content") if chat else ("text",)
        self._field = self._fields[-1]
        """Where the text belongs that the matcher holds back."""
        self._entries: list[Any] = []

    def feed(self, data: str) -> tuple[str, bool]:
        """The event to pass on, and whether a stop string has ended the answer."""
        event = msgspec.json.decode(data)
        if not event["choices"]:
            return data, False
        choice = event["choices"][0]
        text = self._match(choice["delta"] if self._chat else choice, choice["finish_reason"] is not None)
        if choice.get("logprobs"):
            self._entries.extend(choice["logprobs"]["content"])
        ended = self._matcher.found is not None and "timings" in event  # of several events that one token makes, the last tells them
        if ended:
            choice["finish_reason"] = "stop"
            event["usage"] = usage_of(event["timings"])
        tells = self._entries and (text or choice["finish_reason"] == "length")  # the rest is of the end token, or of a stop string
        choice["logprobs"] = {"content": self._entries} if tells else None
        if tells:
            self._entries = []
        return msgspec.json.encode(event).decode(), ended

    def _match(self, said: dict[str, Any], over: bool) -> bool:
        """Put into `said`, in place of its text, what of the text may come out now; whether that is any."""
        shown = dict.fromkeys(self._fields, "")
        for name in self._fields:
            if not said.get(name):
                continue
            if name != self._field:  # no stop string reaches from the reasoning into the content
                shown[self._field] += self._matcher.finish()
                self._field = name
            shown[name] += self._matcher.feed(said[name])
        if over:
            shown[self._field] += self._matcher.finish()
        said.update((name, text) for name, text in shown.items() if text or name in said)
        return any(shown.values())
