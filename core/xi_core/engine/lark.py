"""A `Grammar` in llguidance's dialect of Lark. Pure but for the library; called by `GrammarCompiler`, and by engines over a server.

The dialect: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. Every grammar becomes a rule, and parts that are the same
object become one rule.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from xi_core.engine.formats import spelled
from xi_core.errors import InvalidRequest

if TYPE_CHECKING:
    from xi_core.engine.grammar import Grammar

_ASCII = "dws"
r"""`\d`, `\w` and `\s` mean ASCII's, as in JSON schemas."""
WHITE_SPACE = r"( |\n[ \t]{0,20})?"
"""Between the parts of JSON. Bounded: a model that has nothing to say would write blanks for ever."""
_ANY = r"/(.|\n)*/"

_CODE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_SHORT = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}

MOST_ITEMS = 20_000
"""Places in a grammar where an answer may be at once. What each costs depends on the grammar: `WORK` in grammar.py bounds the time."""
_MARK = "%llguidance {}\n"
"""What tells llguidance that a text is its own dialect, not GBNF."""

SpecialToken = Callable[[str], int | None]
"""The id of the special token that is written so; None where the tokenizer has none."""


def to_lark(library: Any, grammar: Grammar, special: SpecialToken) -> str:
    """The grammar's text, from rule `start`. Raises `InvalidRequest`, with the `param` of the part that is wrong."""
    return _Rules(library, special).text(grammar)


def checked_lark(grammar: Grammar, special: SpecialToken) -> str:
    """The same for a server that reads this dialect where it reads GBNF. Raises `InvalidRequest` for what the library refuses, too."""
    import llguidance  # the server brings it

    text = _MARK + to_lark(llguidance, grammar, special)
    limits = llguidance.LLParserLimits(verbose_errors=False, max_items_in_row=MOST_ITEMS, step_max_items=10 * MOST_ITEMS)
    wrong = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_lark(text), limits=limits)
    if wrong:
        raise InvalidRequest(f"{grammar.param}: {first_line(wrong)}", param=grammar.param)
    return text


class _Rules:
    """The rules of one grammar."""

    def __init__(self, library: Any, special: SpecialToken) -> None:
        self._library = library
        self._special = special
        self._rules: list[str] = []
        self._known: dict[int, str] = {}
        self._terminals = 0

    def text(self, grammar: Grammar) -> str:
        return "\n".join([f"start: {self._name(grammar)}", *self._rules])

    def _name(self, grammar: Grammar) -> str:
        """The rule of a grammar, which is written unless it stands already."""
        name = self._known.get(id(grammar))
        if name is None:
            name = self._known[id(grammar)] = f"r{len(self._known)}"
            attributes, expression = self._until(grammar) if grammar.kind == "until" else ("", self._expression(grammar))
            self._rules.append(f"{name}{attributes}: {expression}")
        return name

    def _terminal(self, pattern: str) -> str:
        self._terminals += 1
        name = f"T{self._terminals}"
        self._rules.append(f"{name}: {pattern}")
        return name

    def _until(self, grammar: Grammar) -> tuple[str, str]:
        id = self._special(grammar.text)
        return (f"[suffix={_literal(grammar.text)}]", _ANY) if id is None else ("", f"{self._terminal(_ANY)} <[{id}]>")

    def _expression(self, grammar: Grammar) -> str:
        match grammar.kind:
            case "json_schema":
                return "%json " + msgspec.json.encode(_spaced(grammar.text)).decode()
            case "regex":
                return self._terminal(f"/{self._regex(grammar)}/")
            case "choice":
                return " | ".join(_literal(text) for text in msgspec.json.decode(grammar.text, type=list[str]))
            case "gbnf":
                return f"%lark {{\n{_from_gbnf(grammar)}\n}}"
            case "text":
                return _literal(grammar.text)
            case "special":
                id = self._special(grammar.text)
                return _literal(grammar.text) if id is None else f"<[{id}]>"
            case "free":
                return self._terminal(_ANY)
            case "one_of":
                return " | ".join(self._name(part) for part in grammar.parts)
            case "optional":
                return f"{self._name(grammar.parts[0])}?"
            case "repeat":
                return f"{self._name(grammar.parts[0])}*"
            case "listed":
                return self._listed(grammar)
            case _:
                return " ".join(self._name(part) for part in grammar.parts) or '""'

    def _listed(self, grammar: Grammar) -> str:
        # From the last to the first: what may follow when one stands already (`after`), and when none does (`start`).
        after = start = '""'
        for part, mark in zip(reversed(grammar.parts), reversed(grammar.text), strict=True):
            one = self._name(part)
            if mark == "!":
                start, after = self._rule(f"{one} {after}"), self._rule(f'", " {one} {after}')
            else:
                start, after = self._rule(f"{one} {after} | {start}"), self._rule(f'", " {one} {after} | {after}')
        return start

    def _rule(self, expression: str) -> str:
        self._terminals += 1
        name = f"e{self._terminals}"
        self._rules.append(f"{name}: {expression}")
        return name

    def _regex(self, grammar: Grammar) -> str:
        try:
            found: str = self._library.regex_to_lark(grammar.text, _ASCII)
        except ValueError as error:
            raise InvalidRequest(f"{grammar.param}: {error}", param=grammar.param) from None
        return found


def _spaced(text: str) -> dict[str, Any]:
    """A schema that says what space there may be, and what formats mean."""
    schema: dict[str, Any] = spelled(msgspec.json.decode(text))
    return schema | {"x-guidance": {"whitespace_pattern": WHITE_SPACE}}


def _literal(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _from_gbnf(grammar: Grammar) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        definition: str = gbnf_to_lark(_CODE.sub(_character, grammar.text))
    except RecursionError:
        raise InvalidRequest(f"{grammar.param}: the grammar is nested too deeply", param=grammar.param) from None
    except Exception as error:  # the library raises bare Exception for a grammar that it can't read
        raise InvalidRequest(f"{grammar.param}: not a grammar in GBNF: {first_line(str(error))}", param=grammar.param) from None
    return definition


def _character(found: re.Match[str]) -> str:
    """A code as the character itself, or its short escape: the library's converter loses zeros, as in `\\u0080`."""
    digits = found[1] or found[2] or found[3]
    character = chr(int(digits, 16)) if digits and int(digits, 16) <= sys.maxunicode else ""
    if character in _SHORT:
        return _SHORT[character]
    return character if character.isalnum() or (character > "\x7f" and not "\ud800" <= character <= "\udfff") else found[0]


def first_line(text: str) -> str:
    """The part of the library's message that says what is wrong, without its drawing of the place."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" ^")]
    told = [line for line in lines if "error:" in line.lower()][1:] or lines[:1]
    return told[0][:300] if told else "the grammar can't be read"
