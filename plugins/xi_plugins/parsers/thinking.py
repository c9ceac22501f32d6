"""Reasoning within `<think>` and `</think>`, before the answer. Base of the parsers `deepseek-r1` and `qwen3`."""

from __future__ import annotations

from xi_core.serving.parser import Thought
from xi_plugins.parsers.jsontext import SPACE, held
from xi_plugins.parsers.states import StateParser

OPEN, CLOSE = "<think>", "</think>"
_EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"


class ThinkingParser(StateParser):
    """Space around the reasoning is neither reasoning nor content. Only the first block counts: a later tag is content."""

    specials = (OPEN, CLOSE)
    always = False
    """Whether the model thinks even where neither its template nor its answer opens the block."""

    def __init__(self) -> None:
        super().__init__(self._start)
        self._begun = False
        self._thinks = self.always
        self._skip = _EMPTY

    def begin(self, prompt: str) -> None:
        end = prompt.rstrip(SPACE)
        if end.endswith(OPEN):
            self._thinks, self._skip = True, f"\n{CLOSE}\n\n"
        elif end.endswith(CLOSE):
            self._thinks, self._skip = False, ""

    def thought(self) -> Thought | None:
        if not self._skip:  # the prompt has closed it
            return None
        opened = self._thinks  # by the prompt, or by the model where it always thinks, with a tag or without
        return Thought(before="" if opened else OPEN, end=CLOSE, optional=not opened)

    def skip(self) -> str:
        return self._skip

    def _start(self) -> bool:
        """Before the reasoning, or before an answer that has none."""
        rest = self._text.lstrip(SPACE)
        if rest.startswith(OPEN):
            self._cut(len(self._text) - len(rest) + len(OPEN))
            self._state = self._reasoning
            return True
        if OPEN.startswith(rest) and not self._ended:
            return False
        self._state = self._reasoning if self._thinks else self._plain
        return True

    def _reasoning(self) -> bool:
        if not self._begun:
            self._text = self._text.lstrip(SPACE)
            self._begun = bool(self._text)
        before, found, after = self._text.partition(CLOSE)
        if found:
            self._out.reasoning += before.rstrip(SPACE)
            self._text, self._state = after, self._after
            return True
        keep = 0 if self._ended else held(self._text, CLOSE)
        certain = self._text[: len(self._text) - keep].rstrip(SPACE)
        self._out.reasoning += certain
        self._text = "" if self._ended else self._text[len(certain) :]
        return False

    def _after(self) -> bool:
        """Space between the reasoning and the answer."""
        self._text = self._text.lstrip(SPACE)
        if self._text:
            self._state = self._plain
        return bool(self._text)
