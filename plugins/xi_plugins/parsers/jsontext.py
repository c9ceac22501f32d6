"""JSON as models write it: where an object ends while it still comes, and what a whole tool call says. Used by the tool parsers.

Everything here reads text as data. Nothing raises on what a model may write.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

SPACE = " \t\r\n"
NAME = r'"(?:[^"\\]|\\.){1,256}"'
"""A function's name as JSON. Bounded: a longer one is looked at again with every piece that comes."""

_MARK = re.compile(r'["\\{}\[\]<]')
"""Characters on which the end of a JSON object depends; `<` can't stand in one outside a string."""
_decoder = json.JSONDecoder()


def _no_json(word: str) -> Any:
    raise ValueError(f"{word} is no JSON, though Python reads it")


_load = partial(json.loads, parse_constant=_no_json)


class ObjectScan:
    """Finds the end of a JSON object that comes in pieces. `depth`: brackets that are open already."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False
        self.ended = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the object; after them it has `ended`, or all of them did."""
        position = 0
        if self._escaped and text:
            self._escaped, position = False, 1
        while (mark := _MARK.search(text, position)) is not None:
            character, position = mark[0], mark.end()
            if self._in_string:
                if character == "\\":
                    self._escaped = position == len(text)
                    position += 1
                elif character == '"':
                    self._in_string = False
            elif character == "<":
                self.ended = True
                return position - 1
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.ended = True
                    return position
        return len(text)


def held(text: str, tag: str) -> int:
    """How many of the last characters may be the start of `tag`."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0


def value_of_string(text: str) -> str | None:
    """The value of a JSON string; None if it is none, or holds half a character (a lone surrogate)."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, str) and encodable(found) else None


def encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8: JSON's `\\ud800` alone can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_call(body: str, keys: tuple[str, ...] = ("arguments",)) -> tuple[str, str] | None:
    """Name and JSON text of the arguments of a whole call; None if it isn't one. `keys`: names that the arguments may have."""
    try:
        members = _members(body)
        name = json.loads(members.get("name", "null"))
        arguments = next((members[key] for key in keys if key in members), "{}")
        if arguments.startswith('"'):  # some models write the object as a string
            arguments = json.loads(arguments)
        if isinstance(name, str) and name and encodable(name + arguments) and isinstance(_load(arguments), dict):
            return name, arguments
    except (ValueError, RecursionError):
        return None
    return None


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object as pieces of its text. Raises ValueError if it is none."""
    _load(text)  # the syntax as a whole
    if not text.lstrip(SPACE).startswith("{"):
        raise ValueError("not an object")
    members: dict[str, str] = {}
    position = _skip(text, text.index("{") + 1)
    while text[position] != "}":
        key, position = _decoder.raw_decode(text, position)
        start = _skip(text, _skip(text, position) + 1)
        _, end = _decoder.raw_decode(text, start)
        members[key] = text[start:end]
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return members


def _skip(text: str, position: int) -> int:
    """The position of the next character that isn't space."""
    while text[position] in SPACE:
        position += 1
    return position
