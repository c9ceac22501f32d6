"""What the parsers have in common: states over held text, and tool calls that stream. Base classes of the parsers beside this file.

What comes out does not depend on how the text was cut into pieces: each state looks for the earliest point in the text at which it can
decide, and never at what stands behind that point.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from xi_core.serving.parser import OutputParser, Parsed, ToolCallDelta
from xi_plugins.parsers.jsontext import NAME, SPACE, ObjectScan, held, read_call, value_of_string

State = Callable[[], bool]
"""Does what the held text allows; True: look again, with what is now the state."""


class StateParser(OutputParser):
    """Runs states until none can go on. What is held at the end, and no state takes, is content."""

    def __init__(self, start: State) -> None:
        self._state = start
        self._text = ""
        self._ended = False
        self._out = Parsed()

    def feed(self, text: str) -> Parsed:
        self._text += text
        return self._run()

    def finish(self) -> Parsed:
        self._ended = True
        out = self._run()
        out.content += self._text
        self._text = ""
        return out

    def _run(self) -> Parsed:
        while self._state():
            pass
        out, self._out = self._out, Parsed()
        return out

    def _cut(self, count: int) -> str:
        """Take so many characters off the held text."""
        taken, self._text = self._text[:count], self._text[count:]
        return taken

    def _plain(self) -> bool:
        """The state in which all that comes is content."""
        self._out.content += self._cut(len(self._text))
        return False


class CallParser(StateParser):
    """A parser of tool calls: content, calls with streamed arguments, and the space between calls, which is nothing."""

    opening: str
    """What begins calls within content."""

    def __init__(self, start: State) -> None:
        super().__init__(start)
        self._index = -1
        self._after_call = False
        self._lead = ""
        """Marks that were read since the last content or call; if no call follows, they are content."""
        self._scan = ObjectScan()

    def _content(self) -> bool:
        before, found, _ = self._text.partition(self.opening)
        if found:
            self._show(self._cut(len(before)))
            self._lead = self._cut(len(found))
            self._state = self._opened
            return True
        certain = len(self._text) if self._ended else len(self._text) - held(self._text, self.opening)
        if self._after_call and not self._text[:certain].strip(SPACE):
            if self._ended:
                self._text = ""
            return False  # space after a call is content only if other content follows
        self._show(self._cut(certain))
        return False

    def _opened(self) -> bool:
        """The state after `opening`."""
        raise NotImplementedError

    def _no_call(self, text: str) -> bool:
        """What was taken for a call is none: it is content, with the marks that led to it."""
        self._show(self._lead + text)
        self._lead = ""
        self._state = self._content
        return True

    def _show(self, content: str) -> None:
        """Content; space alone after a call is none."""
        if content.strip(SPACE) or not self._after_call:
            self._out.content += content
            self._after_call = False

    def _begin(self, name: str, arguments: str = "") -> None:
        self._index += 1
        self._after_call = True
        self._lead = ""
        self._scan = ObjectScan()
        self._out.tool_calls.append(ToolCallDelta(index=self._index, name=name, arguments=arguments))

    def _add(self, arguments: str) -> None:
        calls = self._out.tool_calls
        if calls and calls[-1].index == self._index:
            calls[-1].arguments += arguments
        elif arguments:
            calls.append(ToolCallDelta(index=self._index, arguments=arguments))

    def _arguments(self) -> bool:
        """The state in which the arguments' object comes; `_called` is the next."""
        self._add(self._cut(self._scan.feed(self._text)))
        if not self._scan.ended:
            return False
        self._state = self._called
        return True

    def _called(self) -> bool:
        """The state after the arguments."""
        raise NotImplementedError


class ObjectCallParser(CallParser):
    """Calls that are JSON objects: `{"name": …, KEY: {…}}`, with KEY the first of `keys`."""

    keys: tuple[str, ...] = ("arguments",)
    _head: re.Pattern[str]

    def __init_subclass__(cls) -> None:
        cls._head = re.compile(
            rf'[ \t\r\n]*\{{[ \t\r\n]*"name"[ \t\r\n]*:[ \t\r\n]*({NAME})[ \t\r\n]*,[ \t\r\n]*"(?:'
            + "|".join(cls.keys)
            + r')"[ \t\r\n]*:[ \t\r\n]*(?=\{)',
            re.DOTALL,
        )

    def __init__(self, start: State) -> None:
        super().__init__(start)
        self._call = ""
        self._looked = 0

    def _object(self) -> bool:
        """The state at the brace of a call: streamed in the usual order of keys, else taken whole at its end."""
        head = self._head.match(self._text)
        if head is not None and (name := value_of_string(head[1])) is not None:
            self._looked, self._call = 0, self._cut(head.end())
            self._begin(name)
            self._state = self._arguments
            return True
        end = self._end_of_object()
        if end is None:
            return False
        body = self._cut(end)
        call = read_call(body, self.keys)
        if call is None:
            return self._no_call(body)
        self._begin(*call)
        self._state = self._between
        return True

    def _end_of_object(self, depth: int = 0) -> int | None:
        """Where the object ends that the held text begins with; None while that can't be said. Looks at each character once."""
        if self._looked == 0:
            self._scan = ObjectScan(depth)
        end = self._looked + self._scan.feed(self._text[self._looked :])
        if not self._scan.ended and not self._ended:
            self._looked = len(self._text)
            return None
        self._looked = 0
        return end

    def _arguments(self) -> bool:
        piece = self._cut(self._scan.feed(self._text))
        self._call += piece
        self._add(piece)
        if not self._scan.ended:
            return False
        self._state = self._called
        return True

    def _called(self) -> bool:
        """The rest of the call's object, which should be its brace; what does not complete it is content."""
        end = self._end_of_object(depth=1)
        if end is None:
            return False
        tail = self._cut(end)
        if read_call(self._call + tail, self.keys) is None:
            self._show(tail.lstrip(SPACE).removeprefix("}").strip(SPACE))
        self._state = self._between
        return True

    def _between(self) -> bool:
        """The state after a call."""
        raise NotImplementedError
