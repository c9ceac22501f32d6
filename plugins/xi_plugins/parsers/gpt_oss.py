"""The `gpt-oss` parser of harmony, the form in which gpt-oss models write: messages in channels.

`<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`: analysis is reasoning, final and commentary are
content, and a message to `functions.NAME` is a call. See https://github.com/openai/harmony.
"""

from __future__ import annotations

import re

from xi_core.serving.parser import CallForm, Thought, ToolCallDelta
from xi_plugins.parsers.jsontext import SPACE, held
from xi_plugins.parsers.states import StateParser

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")

_BEGINS = re.compile("|".join(map(re.escape, (START, CHANNEL))))
_STOPS = re.compile("|".join(map(re.escape, (*ENDS, START, CHANNEL))))
_CHANNEL = re.compile(r"<\|channel\|>\s*([a-z]+)")
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_FUNCTION = re.compile(r"functions\.([A-Za-z0-9_.-]{1,64})")
_LONGEST_HEADER = 512
_TO = "to="


class GptOssParser(StateParser):
    """Reasoning, content and calls alike. A header that says nothing known leaves its message content."""

    specials = (START, CHANNEL, MESSAGE, "<|constrain|>", *ENDS)

    def __init__(self) -> None:
        super().__init__(self._start)
        self._index = -1
        self._kind = "content"
        self._empty = True

    def force(self, name: str | None) -> str | None:
        return f"{CHANNEL}commentary to=functions." + (f"{name} <|constrain|>json{MESSAGE}" if name else "")

    def form(self) -> CallForm | None:
        """One call: `<|call|>`, which would end it, ends the answer."""
        return CallForm(before=f"{CHANNEL}commentary to=functions.", middle=f" <|constrain|>json{MESSAGE}", after="", several=False)

    def thought(self) -> Thought | None:
        return Thought(before=f"{CHANNEL}analysis{MESSAGE}", end=ENDS[0], after=f"{START}assistant", optional=True)

    def lead(self) -> str:
        return f"{CHANNEL}final{MESSAGE}"

    def _start(self) -> bool:
        """The prompt has ended in `<|start|>assistant`: a header goes on, or plain text begins."""
        rest = self._text.lstrip(SPACE)
        if _TO.startswith(rest[: len(_TO)]) and len(rest) < len(_TO) and not self._ended:
            return False
        self._state = self._header if rest.startswith(_TO) else self._outside
        return True

    def _outside(self) -> bool:
        """Text outside of messages, of which a model writes none."""
        begins = _BEGINS.search(self._text)
        if begins is not None:
            self._out.content += self._cut(begins.start())
            self._state = self._header
            return True
        self._out.content += self._cut(len(self._text) - self._kept((START, CHANNEL)))
        return False

    def _header(self) -> bool:
        end = self._text.find(MESSAGE, 0, _LONGEST_HEADER)
        if end < 0:
            if len(self._text) < _LONGEST_HEADER and not self._ended:
                return False
            self._out.content += self._cut(1)  # its mark is broken: what follows may be read again
            self._state = self._outside
            return True
        self._read(self._cut(end))
        self._cut(len(MESSAGE))
        self._state = self._body
        return True

    def _read(self, header: str) -> None:
        """What the message is: its recipient counts first, then its channel."""
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        function = _FUNCTION.fullmatch(recipient[1]) if recipient else None
        if function is not None:
            self._kind, self._empty = "call", True
            self._index += 1
            self._out.tool_calls.append(ToolCallDelta(index=self._index, name=function[1]))
        else:
            thought = recipient is not None or (channel is not None and channel[1] == "analysis")
            self._kind = "reasoning" if thought else "content"

    def _body(self) -> bool:
        stop = _STOPS.search(self._text)
        if stop is None:
            self._put(self._cut(len(self._text) - self._kept((*ENDS, START, CHANNEL))))
            if self._ended:
                self._close()
            return False
        self._put(self._cut(stop.start()))
        self._close()
        if stop[0] in ENDS:
            self._cut(len(stop[0]))
            self._state = self._outside
        else:
            self._state = self._header
        return True

    def _put(self, text: str) -> None:
        if self._kind == "reasoning":
            self._out.reasoning += text
        elif self._kind == "content":
            self._out.content += text
        elif text:
            self._empty = False
            calls = self._out.tool_calls
            if calls and calls[-1].index == self._index:
                calls[-1].arguments += text
            else:
                calls.append(ToolCallDelta(index=self._index, arguments=text))

    def _close(self) -> None:
        """A call without any text has no arguments."""
        if self._kind == "call" and self._empty:
            self._put("{}")
        self._kind = "content"

    def _kept(self, tags: tuple[str, ...]) -> int:
        return 0 if self._ended else max(held(self._text, tag) for tag in tags)
