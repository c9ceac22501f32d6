"""Regular expressions as GBNF. Pure; called by `gbnf.py`.

Only what means the same everywhere: characters, classes, groups, `|`, repetitions, and the anchors `^` and `$` at the two ends, where
they change nothing, for the whole answer must match. Anything else is refused by name.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from xi_core.errors import InvalidRequest
from xi_plugins.engines.llama_cpp.ambiguity import Chars, Often, Ranges, Row, Shape, TooLarge, either, most_ways

MOST_REPEATS = 2000
_DEEPEST = 64
_MOST_WORK = 20_000_000
"""llama.cpp compares all places where it may be with each other, element by element. At a few times this a step takes seconds."""
_MOST_WAYS = 100_000
"""In which a text of a long token may be read: so many take a tenth of a second."""
_REPEAT = re.compile(r"\{(\d{1,5})(,(\d{0,5}))?\}")
_SETS: dict[str, Ranges] = {"d": [(48, 57)], "w": [(48, 57), (65, 90), (95, 95), (97, 122)], "s": [(9, 13), (32, 32)]}
_CHARACTERS: Ranges = [(0, 0xD7FF), (0xE000, 0x10FFFF)]
"""What UTF-8 can write. llama.cpp's own negation lets through what no character is."""
_ESCAPED = (*range(32), ord('"'), ord("\\"))
"""What JSON strings hold as escapes."""
_PLAIN: Ranges = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF)]
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}


def literal(text: str) -> str:
    """A text as a literal of GBNF."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character.isascii() and (character.isalnum() or character in " _{}:,.'-+"):
        return character
    return _code(ord(character))


def _code(code: int) -> str:
    return f"\\x{code:02X}" if code < 256 else f"\\u{code:04X}" if code < 65536 else f"\\U{code:08X}"


def one_of(ranges: Ranges) -> str:
    """A class of GBNF."""
    return "[" + "".join(f"{_code(first)}-{_code(last)}" if last > first else _code(first) for first, last in ranges) + "]"


def all_but(ranges: Ranges) -> Ranges:
    """The characters outside `ranges`."""
    found = []
    for first, last in _CHARACTERS:
        for low, high in sorted(ranges):
            if high < first or low > last:
                continue
            if low > first:
                found.append((first, low - 1))
            first = high + 1
        if first <= last:
            found.append((first, last))
    return found


class Piece(NamedTuple):
    """An expression of GBNF; what it stands for; whether it may be empty; at how many places in it a text may begin."""

    text: str
    shape: Shape
    empty: bool = False
    starts: int = 1


def regex_to_gbnf(pattern: str, param: str) -> str:
    """An expression of GBNF for what `pattern` matches as a whole. Raises `InvalidRequest`."""
    parser = _Parser(pattern, param, param)
    found = parser.whole()
    parser.check(found.shape)
    return found.text


def pattern_to_gbnf(pattern: str, name: str, param: str) -> str:
    """An expression of GBNF for the JSON strings in which `pattern` matches somewhere. Raises `InvalidRequest`; `name` is for its words."""
    return _JsonParser(pattern, name, param).within()


def _set(name: str) -> Ranges:
    return _SETS[name] if name.islower() else all_but(_SETS[name.lower()])


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str, name: str, param: str) -> None:
        self._text = pattern
        self._name = name
        self._param = param
        self._at = 0
        self._depth = 0
        self._ways = 0
        """Alternatives outside of groups."""
        self._ends = False
        """Whether the anchor of the end was read."""

    def _literal(self, text: str) -> str:
        return literal(text)

    def _one_of(self, ranges: Ranges) -> str:
        return one_of(ranges)

    def whole(self) -> Piece:
        if self._peek() == "^":
            self._at += 1
        found = self._alternatives()
        if self._peek():
            raise self._wrong(f"'{self._peek()}' without its partner")
        return found

    def check(self, shape: Shape) -> None:
        """Raises `InvalidRequest` where llama.cpp would have to follow too many ways at once."""
        try:
            ways = most_ways(shape, _MOST_WAYS)
        except TooLarge:
            raise self._wrong("too many parts that may be left out") from None
        if ways > _MOST_WAYS:
            raise self._wrong("one text could be read in too many ways: let parts beside each other begin with different characters")

    def _wrong(self, message: str) -> InvalidRequest:
        return InvalidRequest(
            f"{self._name}: {message} (character {self._at + 1}); engine llama.cpp takes characters, classes, groups, '|' and repetitions",
            param=self._param,
        )

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        found = self._peek()
        if not found:
            raise self._wrong("the pattern ends too early")
        self._at += 1
        return found

    def _alternatives(self) -> Piece:
        parts = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence())
        self._ways = len(parts)  # the last to be set are those of the whole
        text = " | ".join(part.text for part in parts)
        shape = either([part.shape for part in parts])
        return Piece(text, shape, any(part.empty for part in parts), sum(part.starts for part in parts))

    def _sequence(self) -> Piece:
        parts: list[Piece] = []
        while self._peek() not in ("", "|", ")"):
            if self._peek() == "$" and self._at == len(self._text) - 1:
                self._at += 1
                self._ends = True
                break
            parts.append(self._repeated(self._atom()))
        starts = 0
        for length, part in enumerate(reversed(parts), 1):
            starts = part.starts + (starts if part.empty else 0)
            if starts * starts * length > _MOST_WORK:
                raise self._wrong("too many parts that may be left out")
        text = " ".join(part.text for part in parts) or '""'
        return Piece(text, Row([part.shape for part in parts]), all(part.empty for part in parts), starts)

    def _atom(self) -> Piece:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return self._of_ranges(self._class())
        if character == ".":
            return self._of_ranges(all_but([(10, 10)]))
        if character == "\\":
            return self._escape()
        if character in "^$":
            raise self._wrong(f"the anchor '{character}' is supported only at the pattern's own start or end")
        if character in "*+?{":
            raise self._wrong(f"'{character}' has nothing to repeat")
        return self._of_character(character)

    def _of_ranges(self, ranges: Ranges) -> Piece:
        return Piece(self._one_of(ranges), Chars(ranges))

    def _of_character(self, character: str) -> Piece:
        return Piece(self._literal(character), Chars([(ord(character), ord(character))]))

    def _group(self) -> Piece:
        if self._peek() == "?":
            if self._text[self._at : self._at + 2] != "?:":
                raise self._wrong("look-around, named groups and flags are not supported")
            self._at += 2
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong(f"groups are nested more than {_DEEPEST} deep")
        inner = self._alternatives()
        self._depth -= 1
        if self._take() != ")":
            raise self._wrong("a group does not end")
        return inner._replace(text=f"({inner.text})")

    def _escape(self) -> Piece:
        character = self._take()
        return self._of_ranges(_set(character)) if character.lower() in _SETS else self._of_character(self._escaped_character(character))

    def _escaped_character(self, character: str) -> str:
        if character in _CONTROLS:
            return _CONTROLS[character]
        if character in "xu":
            digits = self._text[self._at : self._at + (2 if character == "x" else 4)]
            if not re.fullmatch(r"[0-9a-fA-F]{2}|[0-9a-fA-F]{4}", digits) or 0xD800 <= int(digits, 16) <= 0xDFFF:
                raise self._wrong(f"'\\{character}' needs {2 if character == 'x' else 4} hexadecimal digits of a character")
            self._at += len(digits)
            return chr(int(digits, 16))
        if character.isalnum():
            raise self._wrong(f"'\\{character}' is not supported")
        return character

    def _class(self) -> Ranges:
        negated = self._peek() == "^"
        self._at += negated
        ranges: Ranges = []
        while not ranges or self._peek() != "]":
            ranges += self._class_part()
        self._at += 1
        found = all_but(ranges) if negated else ranges
        if not found:
            raise self._wrong("a class has no character")
        return found

    def _class_part(self) -> Ranges:
        first = self._class_character()
        if len(first) != 1 or self._peek() != "-" or self._text[self._at + 1 : self._at + 2] in ("]", ""):
            return first
        self._at += 1
        last = self._class_character()
        if len(last) != 1 or last < first:
            raise self._wrong("a range of a class ends before it starts")
        return [(first[0][0], last[0][1])]

    def _class_character(self) -> Ranges:
        """One character, or a set such as `\\d`."""
        character = self._take()
        if character == "[":
            raise self._wrong("'[' within a class must be written '\\['")
        if character in "&~" and self._peek() == character:
            raise self._wrong("operations on classes are not supported")
        if character == "\\":
            character = self._take()
            if character.lower() in _SETS:
                return _set(character)
            character = self._escaped_character(character)
        return [(ord(character), ord(character))]

    def _repeated(self, part: Piece) -> Piece:
        """`part` with the repetition that follows it, if one does."""
        sign = self._peek()
        if not sign or sign not in "*+?{":
            return part
        if sign == "{":
            text, least, most = self._counted()
        else:
            self._at += 1
            text, least, most = sign, int(sign == "+"), 1 if sign == "?" else None
        if self._peek() == "?":  # lazy: the same texts match
            self._at += 1
        if self._peek() and self._peek() in "*+{":
            raise self._wrong("a repetition of a repetition needs a group")
        if part.empty and most is None:
            raise self._wrong("an endless repetition of what may be empty is not supported")
        starts = part.starts * max(1, most or 0) if part.empty else part.starts
        if starts * starts > _MOST_WORK:
            raise self._wrong("too many parts that may be left out")
        return Piece(part.text + text, Often(part.shape, least, most), part.empty or least == 0, starts)

    def _counted(self) -> tuple[str, int, int | None]:
        match = _REPEAT.match(self._text, self._at)
        if match is None:
            raise self._wrong("'{' must be a repetition, or be written '\\{'")
        least = int(match[1])
        most = least if match[2] is None else int(match[3]) if match[3] else None
        if max(least, most or 0) > MOST_REPEATS or (most is not None and most < least):
            raise self._wrong(f"a repetition must be from 0 to {MOST_REPEATS}, the smaller number first")
        self._at = match.end()
        return match[0], least, most


class _JsonParser(_Parser):
    """Writes characters as JSON strings hold them, quotes and all."""

    def within(self) -> str:
        starts = self._peek() == "^"
        found = self.whole()
        if self._ways > 1 and (starts or self._ends):
            raise self._wrong("an anchor beside '|' needs a group: ^(a|b)$")
        others: list[Shape] = [Often(Chars(_CHARACTERS), 0, None)]
        self.check(Row([*([] if starts else others), found.shape, *([] if self._ends else others)]))
        return f'"\\"" {"" if starts else "char*"} ({found.text}) {"" if self._ends else "char*"} "\\""'

    def _literal(self, text: str) -> str:
        return literal(json.dumps(text, ensure_ascii=False)[1:-1])

    def _one_of(self, ranges: Ranges) -> str:
        plain = _common(ranges, _PLAIN)
        escapes = [literal(json.dumps(chr(code))[1:-1]) for code in _ESCAPED if any(first <= code <= last for first, last in ranges)]
        return "(" + " | ".join(([one_of(plain)] if plain else []) + escapes) + ")"


def _common(ranges: Ranges, others: Ranges) -> Ranges:
    pairs = [(max(low, first), min(high, last)) for low, high in ranges for first, last in others]
    return [(low, high) for low, high in pairs if low <= high]
