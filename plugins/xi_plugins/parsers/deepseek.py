"""The `deepseek` tool parser, for DeepSeek V3, R1 and V3.1.

V3 and R1 write `…call▁begin｜>function<｜tool▁sep｜>NAME`, then the arguments as a block of JSON.
V3.1 writes `…call▁begin｜>NAME<｜tool▁sep｜>{…}`.
"""

from __future__ import annotations

import re

from msgspec.structs import replace

from xi_core.serving.parser import CallForm
from xi_plugins.parsers.jsontext import SPACE
from xi_plugins.parsers.states import CallParser

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

_NAME = r"([^\s<>{}`]{1,128})"
_HEAD = re.compile(rf"(?:function{SEPARATOR}{_NAME}\s*```(?:json)?\s*|{_NAME}{SEPARATOR}\s*)(?=\{{)")
_STOP = re.compile(rf"\{{|{CALL_END}|{CALLS_END}")
_TAIL = re.compile(rf"{CALL_END}|{CALLS_END}|{CALL}")
_LONGEST_HEAD = 512
_FENCE = "```"
_NEWER_PROMPTS = ("<｜Assistant｜><think>", "<｜Assistant｜></think>")
"""How the prompts of V3.1's template end; R1's has a line break more."""


class DeepseekParser(CallParser):
    """Streams the arguments of each call as they are written."""

    specials = (CALLS, CALLS_END, CALL, SEPARATOR, CALL_END)
    opening = CALLS

    def __init__(self) -> None:
        super().__init__(self._content)
        self._newer = False

    def begin(self, prompt: str) -> None:
        self._newer = prompt.endswith(_NEWER_PROMPTS)

    def force(self, name: str | None) -> str | None:
        if self._newer:
            return CALLS + CALL + (name + SEPARATOR if name else "")
        return f"{CALLS}{CALL}function{SEPARATOR}" + (f"{name}\n```json\n" if name else "")

    def form(self) -> CallForm | None:
        form = CallForm(begin=CALLS, before=CALL, middle=SEPARATOR, after=CALL_END, end=CALLS_END, trigger=CALLS)
        if self._newer:
            return form
        return replace(
            form, before=f"{CALL}function{SEPARATOR}", middle=f"\n{_FENCE}json\n", after=f"\n{_FENCE}{CALL_END}", between="\n",
        )  # fmt: skip

    def _opened(self) -> bool:
        """Before a call, or after the last one."""
        rest = self._text.lstrip(SPACE)
        if rest.startswith(CALL):
            self._lead += self._cut(len(self._text) - len(rest) + len(CALL))
            self._state = self._head
            return True
        if rest.startswith(CALLS_END) and not self._lead:
            self._cut(len(self._text) - len(rest) + len(CALLS_END))
            self._state = self._content
            return True
        if any(tag.startswith(rest) for tag in (CALL, CALLS_END)) and not self._ended:
            return False
        return self._no_call("")

    def _head(self) -> bool:
        """The function's name. The first brace, or the call's end, decides."""
        stop = _STOP.search(self._text, 0, _LONGEST_HEAD)
        if stop is None:
            return self._no_call("") if len(self._text) >= _LONGEST_HEAD or self._ended else False
        head = _HEAD.match(self._text, 0, stop.end())
        if head is None:
            return self._no_call("")
        self._cut(head.end())
        self._begin(head[1] or head[2])
        self._state = self._arguments
        return True

    def _called(self) -> bool:
        """From the arguments to the call's end: the end of their block, and nothing else."""
        tag = _TAIL.search(self._text)
        if tag is None and not self._ended:
            return False
        tail = self._cut(tag.start() if tag is not None else len(self._text))
        if tag is not None and tag[0] == CALL_END:
            self._cut(len(CALL_END))
        self._show(tail.strip(SPACE).removeprefix(_FENCE).strip(SPACE))
        self._state = self._opened if tag is not None else self._content
        return tag is not None
