"""Chats whose text llama.cpp's own parser can't read. Used by `engine.py`.

llama.cpp parses what the model writes into reasoning, content and calls. Where a text doesn't fit the form that it made out in the model's
template, it tells an error in place of the answer's end, and not the text. What a model writes is no failure to its client, though. So the
request is made again with nothing left to parse. By the same seed the model writes the same, as a rule; what of it the client hasn't seen
is content. Where it writes another text, or where a call was begun, nothing can be added: the answer ends there.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

_PARSERS = (
    "The model produced output that does not match",
    "Invalid diff",
    "Duplicate tool argument",
    "Missing required tool argument",
    "[json.exception.",
)
"""How llama.cpp's messages begin that tell of the model's text: of its form, of parts that changed as it grew, of arguments."""
_PARSED = ("logprobs", "top_logprobs")
"""What an answer has that is parsed, and one that isn't parsed can't have."""


class _Error(Struct):
    message: str = ""


class _Failure(Struct):
    error: _Error


class _Function(Struct):
    arguments: str = ""


class _Call(Struct):
    index: int = 0
    function: _Function = field(default_factory=_Function)


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] = []


class _Choice(Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Event(Struct):
    choices: list[_Choice] = []
    timings: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Event).decode
_decode_failure = msgspec.json.Decoder(_Failure).decode


def is_of_the_parser(failure: str) -> bool:
    """Whether an error object, which came after the answer had begun, tells of the text that the model wrote."""
    return _decode_failure(failure).error.message.startswith(_PARSERS)


def unparsed(body: dict[str, Any]) -> dict[str, Any]:
    """The same request to llama.cpp, the text of whose answer is content as it is."""
    asked = {name: value for name, value in body.items() if name not in _PARSED}
    return asked | {"reasoning_format": "none"} | ({"tool_choice": "none"} if "tools" in body else {})


def usage_of(timings: dict[str, Any]) -> dict[str, int]:
    """llama.cpp's `timings` in OpenAI's words."""
    prompt, answer = timings.get("cache_n", 0) + timings.get("prompt_n", 0), timings.get("predicted_n", 0)
    return {"completion_tokens": answer, "prompt_tokens": prompt, "total_tokens": prompt + answer}


class Shown:
    """What a client has seen of a chat. Its events themselves are a hundred times as large."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._arguments: list[str] = []
        """Of the last call."""
        self._call = -1
        self._timings: dict[str, Any] = {}

    def note(self, data: str) -> None:
        event = _decode(data)
        self._timings = event.timings or self._timings
        for choice in event.choices:
            self._reasoning.append(choice.delta.reasoning_content or "")
            self._content.append(choice.delta.content or "")
            for call in choice.delta.tool_calls:
                if call.index != self._call:
                    self._call, self._arguments = call.index, []
                self._arguments.append(call.function.arguments)

    def calls(self) -> bool:
        return self._call >= 0

    def last(self) -> list[str]:
        """The events that end an answer of calls. One whose last call isn't complete ends as though it had been cut there."""
        try:
            msgspec.json.decode("".join(self._arguments))
            finish = "tool_calls"
        except msgspec.DecodeError:
            finish = "length"
        return [_event(finish_reason=finish), msgspec.json.encode({"choices": [], "usage": usage_of(self._timings)}).decode()]

    def rest_of(self, text: str) -> str | None:
        """What comes after all that was shown; None where the text is another. Between reasoning and content may be marks."""
        at = 0
        for part in ("".join(self._reasoning), "".join(self._content)):
            found = text.find(part, at)
            if found < 0:
                return None
            at = found + len(part)
        return text[at:]


class Again:
    """The events of the second answer, which is shown when it is whole."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._text: list[str] = []
        self._finish = ""
        self._usage: list[str] = []

    def take(self, data: str) -> None:
        event = _decode(data)
        self._text += [choice.delta.content or "" for choice in event.choices]
        if not event.choices:
            self._usage.append(data)
        elif event.choices[0].finish_reason is not None:
            self._finish = data

    def events(self) -> list[str]:
        """What is left to show. Where the model has written another text, the answer is told to have been cut."""
        rest = self._shown.rest_of("".join(self._text))
        if rest is None:
            return [_event(finish_reason="length"), *self._usage]
        return [*([_event(content=rest)] if rest else []), self._finish, *self._usage]


def _event(finish_reason: str | None = None, **delta: str) -> str:
    return msgspec.json.encode({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}).decode()
