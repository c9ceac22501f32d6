"""Where in a JSON text a field stands: for messages about files that people write. Part of `family_file`."""

from __future__ import annotations

import json
import re

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_SPACE = re.compile(r"\s*")
_decoder = json.JSONDecoder()


def line_of(text: str, path: str) -> int:
    """The line, from 1, of the field at `path` (`specs[2].format`) in valid JSON; of the last part of the path that is there."""
    place = _skip(text, 0)
    try:
        for step in _STEP.finditer(path):
            place = _item(text, place, int(step[2])) if step[2] is not None else _member(text, place, step[1])
    except (LookupError, ValueError, RecursionError):
        pass  # the rest of the path isn't there, or too deep to be passed: what is missing belongs here
    return text.count("\n", 0, place) + 1


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _member(text: str, at: int, name: str) -> int:
    """Where an object's member begins its value, of several of one name the last."""
    if text[at] != "{":
        raise LookupError(name)
    found = -1
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # the colon
        if key == name:
            found = at
        at = _after(text, at)
    if found < 0:
        raise LookupError(name)
    return found


def _item(text: str, at: int, number: int) -> int:
    if text[at] != "[":
        raise LookupError(number)
    at = _skip(text, at + 1)
    for _ in range(number):
        at = _after(text, at)
    return at


def _after(text: str, at: int) -> int:
    """Where the next member or item begins, after the value at `at`; or the closing bracket."""
    _, at = _decoder.raw_decode(text, at)
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at
