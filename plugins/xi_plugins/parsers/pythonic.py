"""The `pythonic` tool parser: an answer that is a list of calls in Python's syntax, `[get_weather(city="Paris"), time()]`.

It is parsed with `ast` as data: literals only, and nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from keyword import iskeyword
from typing import Any

from xi_core.serving.parser import CallForm
from xi_plugins.parsers.jsontext import SPACE, encodable
from xi_plugins.parsers.states import CallParser

_START = re.compile(r"\[\s*(?:[^\W\d]\w*(?:\.\w*)*\s*(?:\(|$)|$)")
"""How a list of calls begins, or may begin when all the text is used up."""
_MARK = re.compile(r"""\\.|["'()\[\]{}]|\\$""", re.DOTALL)
_LONGEST = 64 * 1024
_DEEPEST = 50
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "none": None}
"""JSON's words, which some models write."""

Call = tuple[str, str]


class PythonicParser(CallParser):
    """Gives all calls when the list is closed: only then is it known to be one."""

    opening = "<|python_start|>["

    def __init__(self) -> None:
        super().__init__(self._start)
        self._open = 0
        self._quote = ""
        self._looked = 0

    def force(self, name: str | None) -> str | None:
        if name is None:
            return "["
        return f"[{name}(" if all(part.isidentifier() and not iskeyword(part) for part in name.split(".")) else None

    def form(self) -> CallForm | None:
        return CallForm(begin="[", before="", middle="(", after=")", between=", ", end="]", python=True, first="[")

    def _start(self) -> bool:
        """Whether the answer begins as a list of calls."""
        rest = self._text.lstrip(SPACE)
        if not rest:
            return False
        start = _START.match(rest)
        if start is None:
            self._state = self._plain
        elif not start[0].endswith("("):
            return False
        else:
            self._state = self._list
        return True

    def _list(self) -> bool:
        end = self._end_of_list()
        if end is None:
            return False
        calls = read_calls(self._text[:end])
        if calls is None:
            self._state = self._plain
            return True
        self._cut(end)
        for call in calls:
            self._begin(*call)
        self._state = self._rest
        return True

    def _end_of_list(self) -> int | None:
        """Where the list's bracket closes, None while it is open. Looks at each character once."""
        position = self._looked
        while (mark := _MARK.search(self._text, position)) is not None:
            character = mark[0]
            if character == "\\" and not self._ended:
                break  # what it escapes has not come yet
            position = mark.end()
            if self._quote:
                self._quote = "" if character == self._quote else self._quote
            elif character in "\"'":
                self._quote = character
            elif character in "([{":
                self._open += 1
            elif character in ")]}":
                self._open -= 1
                if self._open == 0:
                    return position
        self._looked = position if mark is not None else len(self._text)
        return len(self._text) if self._ended else None

    def _rest(self) -> bool:
        """After the list: space is nothing, other text is content."""
        if self._text.strip(SPACE):
            self._state = self._plain
            return True
        if self._ended:
            self._text = ""
        return False


def read_calls(text: str) -> list[Call] | None:
    """Name and JSON text of the arguments of each call in a list; None if the text is anything else."""
    if len(text) > _LONGEST or _depth(text) > _DEEPEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a strange escape in a string is the model's affair
            tree = ast.parse(text.strip(SPACE), mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [_call(element) for element in tree.elts]
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return None


def _depth(text: str) -> int:
    """How deep brackets stand at most, those in strings counted too: what is deeper is no call that anybody means."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _call(element: ast.expr) -> Call:
    """Raises ValueError for what is no call with literals by name."""
    if not isinstance(element, ast.Call) or element.args:
        raise ValueError("not a call with named arguments")
    arguments: dict[str, Any] = {}
    for keyword in element.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("not a name")
        arguments[keyword.arg] = _literal(keyword.value)
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    if not encodable(text):
        raise ValueError("half a character")
    return _name(element.func), text


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute):
        return f"{_name(function.value)}.{function.attr}"
    raise ValueError("not a name")


def _literal(node: ast.expr) -> Any:
    """The value of a literal that JSON has too. Raises ValueError for anything else."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=word) if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _literal(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if not isinstance(number, bool):
            return -number
    raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("not a text")
