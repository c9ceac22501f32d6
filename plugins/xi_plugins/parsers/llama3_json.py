"""The `llama3_json` tool parser, for Llama 3 models: an answer that is `{"name": …, "parameters": {…}}`, or several with `;` between.

`<|python_tag|>` may stand before it. Text before the tag is content; an answer that begins otherwise is content, braces and all.
"""

from __future__ import annotations

from xi_core.serving.parser import CallForm
from xi_plugins.parsers.jsontext import SPACE
from xi_plugins.parsers.states import ObjectCallParser

TAG = "<|python_tag|>"


class Llama3JsonParser(ObjectCallParser):
    """Streams the arguments of each call as they are written."""

    specials = (TAG,)
    opening = TAG
    keys = ("parameters", "arguments")

    def __init__(self) -> None:
        super().__init__(self._start)

    def force(self, name: str | None) -> str | None:
        return '{"name": "' + (f'{name}", "parameters":' if name else "")

    def form(self) -> CallForm | None:
        return CallForm(before='{"name": "', middle='", "parameters": ', after="}", between="; ", first="{")

    def _start(self) -> bool:
        """The answer's first character tells whether it may be a call."""
        first = self._text.lstrip(SPACE)[:1]
        if not first:
            return False
        self._state = self._object if first == "{" else self._content
        return True

    def _opened(self) -> bool:
        """After the tag, and between calls, where `;` may stand."""
        rest = self._text.lstrip(SPACE)
        if rest.startswith("{"):
            self._lead += self._cut(len(self._text) - len(rest))
            self._state = self._object
            return True
        if rest.startswith(TAG):
            self._lead += self._cut(len(self._text) - len(rest) + len(TAG))
            return True
        if (rest and not TAG.startswith(rest)) or self._ended:
            return self._no_call("")
        return False

    def _between(self) -> bool:
        rest = self._text.lstrip(SPACE)
        if not rest:
            if self._ended:
                self._text = ""
            return False
        if rest[0] == ";":
            self._lead = self._cut(len(self._text) - len(rest) + 1)
            self._state = self._opened
        else:
            self._state = self._object if rest[0] == "{" else self._content
        return True
