"""The `hermes` tool parser, for models that write `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. Loaded in a replica.

What comes out does not depend on how the text was cut into pieces. Each state looks for the earliest point in the text at which it can
decide, and never at what stands behind that point.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from xi_core.serving.parser import CallForm, OutputParser, Parsed, ToolCallDelta
from xi_plugins.parsers.jsontext import NAME, SPACE, ObjectScan, held, read_call, value_of_string

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_HEAD = re.compile(rf'[ \t\r\n]*\{{[ \t\r\n]*"name"[ \t\r\n]*:[ \t\r\n]*({NAME})[ \t\r\n]*,[ \t\r\n]*"arguments"[ \t\r\n]*:[ \t\r\n]*\{{')
"""The start of a call in the usual order of keys, up to the brace that opens the arguments."""
_TAG = re.compile(f"{OPEN}|{CLOSE}")


class _State(Enum):
    CONTENT = auto()
    HEAD = auto()
    """After `<tool_call>`, before the arguments."""
    ARGUMENTS = auto()
    TAIL = auto()
    """After the arguments, before `</tool_call>`."""


class HermesParser(OutputParser):
    """Streams the name as soon as the arguments begin, then their JSON text as it is written, not re-encoded.

    A call with its keys in another order, or without arguments, comes whole at its end. What isn't a call is content, tags and all.
    """

    def __init__(self) -> None:
        self._state = _State.CONTENT
        self._text = ""
        self._call = ""
        self._index = -1
        self._after_call = False
        self._scan = ObjectScan()
        self._out = Parsed()

    def force(self, name: str | None) -> str | None:
        return f'{OPEN}\n{{"name": "' + (f'{name}", "arguments":' if name else "")

    def form(self) -> CallForm | None:
        return CallForm(
            before=f'{OPEN}\n{{"name": "', middle='", "arguments": ', after=f"}}\n{CLOSE}", between="\n", trigger=OPEN,
        )  # fmt: skip

    def feed(self, text: str) -> Parsed:
        self._text += text
        while self._advance():
            pass
        return self._take()

    def finish(self) -> Parsed:
        text, self._text = self._text, ""
        match self._state:
            case _State.CONTENT if not self._after_call or text.strip(SPACE):
                self._show(text)
            case _State.HEAD:
                self._whole_call(text, OPEN + text)
            case _State.TAIL:
                self._end_call(text)
        self._state = _State.CONTENT
        return self._take()

    def _take(self) -> Parsed:
        out, self._out = self._out, Parsed()
        return out

    def _advance(self) -> bool:
        """Do what the text at hand allows; whether to go on with the rest of it."""
        match self._state:
            case _State.CONTENT:
                return self._content()
            case _State.HEAD:
                return self._head()
            case _State.ARGUMENTS:
                return self._arguments()
            case _State.TAIL:
                return self._tail()

    def _content(self) -> bool:
        before, found, after = self._text.partition(OPEN)
        if found:
            if before.strip(SPACE) or not self._after_call:
                self._show(before)
            self._text, self._state = after, _State.HEAD
            return True
        certain = len(self._text) - held(self._text, OPEN)
        if self._after_call and not self._text[:certain].strip(SPACE):
            return False  # space after a call is content only if other content follows
        self._show(self._text[:certain])
        self._text = self._text[certain:]
        return False

    def _show(self, content: str) -> None:
        self._out.content += content
        if content.strip(SPACE):
            self._after_call = False

    def _head(self) -> bool:
        close = self._text.find(CLOSE)
        head = _HEAD.match(self._text)
        if head is not None and (close < 0 or head.end() < close + len(CLOSE)):
            name = value_of_string(head[1])
            if name is not None:
                self._begin(name)
                self._call, self._text = self._text[: head.end() - 1], self._text[head.end() - 1 :]
                self._scan = ObjectScan()
                self._state = _State.ARGUMENTS
                return True
        if close < 0:
            return False
        body, self._text = self._text[:close], self._text[close + len(CLOSE) :]
        self._whole_call(body, OPEN + body + CLOSE)
        self._state = _State.CONTENT
        return True

    def _begin(self, name: str, arguments: str = "") -> None:
        self._index += 1
        self._after_call = True
        self._out.tool_calls.append(ToolCallDelta(index=self._index, name=name, arguments=arguments))

    def _whole_call(self, body: str, text: str) -> None:
        """Emit a call that has come whole; `text` is what to show if it is none."""
        call = read_call(body)
        if call is None:
            self._show(text)
        else:
            self._begin(*call)

    def _arguments(self) -> bool:
        end = self._scan.feed(self._text)
        piece, self._text = self._text[:end], self._text[end:]
        if piece:
            self._call += piece
            self._add(piece)
        if self._scan.ended:
            self._state = _State.TAIL
        return self._scan.ended

    def _add(self, arguments: str) -> None:
        calls = self._out.tool_calls
        if calls and calls[-1].index == self._index:
            calls[-1].arguments += arguments
        else:
            calls.append(ToolCallDelta(index=self._index, arguments=arguments))

    def _tail(self) -> bool:
        tag = _TAG.search(self._text)
        if tag is None:
            return False
        self._end_call(self._text[: tag.start()])
        # A call that opens without the last one's end tag ends it all the same.
        self._text = self._text[tag.end() if tag[0] == CLOSE else tag.start() :]
        self._state = _State.CONTENT
        return True

    def _end_call(self, tail: str) -> None:
        """The call is over: what follows its arguments is content, unless it completes a JSON object."""
        if read_call(self._call + tail) is None:
            self._show(tail.lstrip(SPACE).removeprefix("}").strip(SPACE))
        self._call = ""
