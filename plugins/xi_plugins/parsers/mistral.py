"""The `mistral` tool parser: `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, and the newer `[TOOL_CALLS]NAME[ARGS]{…}` for each call."""

from __future__ import annotations

import re

from xi_core.serving.parser import CallForm
from xi_plugins.parsers.jsontext import SPACE, ObjectScan
from xi_plugins.parsers.states import ObjectCallParser

OPEN = "[TOOL_CALLS]"
_NAMED = re.compile(r"[ \t\r\n]*([A-Za-z0-9_.-]{1,128})[ \t\r\n]*(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?[ \t\r\n]*(?=\{)")
_LONGEST_NAMED = 256
"""Characters in which a name and its marks must have come."""


class MistralParser(ObjectCallParser):
    """Streams the arguments of each call as they are written."""

    specials = (OPEN, "[ARGS]", "[CALL_ID]")
    opening = OPEN

    def __init__(self) -> None:
        super().__init__(self._content)
        self._named = False

    def force(self, name: str | None) -> str | None:
        return f'{OPEN}[{{"name": "' + (f'{name}", "arguments":' if name else "")

    def form(self) -> CallForm | None:
        return CallForm(
            begin=f"{OPEN}[", before='{"name": "', middle='", "arguments": ', after="}", between=", ", end="]", trigger=OPEN,
        )  # fmt: skip

    def _opened(self) -> bool:
        """After the mark: a list of calls, one call, or a function's name."""
        rest = self._text.lstrip(SPACE)
        if not rest:
            return self._ended and self._no_call("")
        if rest[0] == "[":
            self._lead += self._cut(len(self._text) - len(rest) + 1)
            self._state = self._item
        else:
            self._state = self._object if rest[0] == "{" else self._name
        return True

    def _item(self) -> bool:
        """Within the list, before a call."""
        rest = self._text.lstrip(SPACE)
        if not rest and not self._ended:
            return False
        if not rest.startswith("{"):
            return self._no_call("")
        self._named, self._state = False, self._object
        return True

    def _name(self) -> bool:
        """The newer form. The first brace decides; a text without one for long is no call."""
        brace = self._text.find("{", 0, _LONGEST_NAMED)
        if brace < 0:
            return self._no_call("") if len(self._text) >= _LONGEST_NAMED or self._ended else False
        named = _NAMED.match(self._text, 0, brace + 1)
        if named is None:
            return self._no_call("")
        self._cut(named.end())
        self._begin(named[1])
        self._named, self._state = True, self._arguments
        return True

    def _called(self) -> bool:
        if not self._named:
            return super()._called()
        self._scan, self._named, self._state = ObjectScan(), False, self._content
        return True

    def _between(self) -> bool:
        """After a call of the list: the next one, or the list's end."""
        rest = self._text.lstrip(SPACE)
        if not rest:
            if self._ended:
                self._text = ""
            return False
        if rest[0] == ",":
            self._lead = self._cut(len(self._text) - len(rest) + 1)
            self._state = self._item
            return True
        if rest[0] == "]":
            self._cut(len(self._text) - len(rest) + 1)
        self._state = self._content
        return True
