"""What `EngineKit` asks of structured output: the cases, and what makes an answer of each valid. Used by engine_kit.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Person",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["new", 'a "b" \\ c']}, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Place"}]},
    },
    "required": ["name", "age", "home"],
    "$defs": {"Place": {"type": "object", "properties": {"north": {"type": "boolean"}}, "required": ["north"]}},
}
CHOICES = ["yes", "no", 'no "maybe"\n', "é\\"]
REGEX = r"(?:[a-c]{2}-)?\d{1,3}\.[^\s\w\x00-\x1f]"
GRAMMAR = 'root ::= sum\nsum ::= term ("+" term){0,2} # of up to three\nterm ::= [0-9]{1,3} | "(" [0-9] ")"\n'


class Place(Struct, forbid_unknown_fields=True):
    """As in `SCHEMA`."""

    north: bool


class Person(Struct, forbid_unknown_fields=True):
    """As in `SCHEMA`."""

    name: str
    age: int
    home: Place | None
    tags: list[str] = []


class Case(Struct):
    """Fields that ask for a kind of answer, and whether a text is one. `field` and `kind` are what a manifest claims."""

    fields: dict[str, Any]
    valid: Callable[[str], bool]
    field: str = "structured_outputs"
    kind: str = ""
    ends: bool = True
    """Whether each answer is short by the grammar alone."""


def _person(text: str) -> bool:
    person = msgspec.json.decode(text, type=Person)
    names = set(SCHEMA["properties"]["tags"]["items"]["enum"])
    return 1 <= len(person.name) <= 12 and 0 <= person.age <= 120 and len(person.tags) <= 3 and set(person.tags) <= names


def _object(text: str) -> bool:
    """Numbers may be as large as they like, which msgspec refuses; JSON has no NaN."""
    return isinstance(json.loads(text, parse_constant=_no_constant), dict)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


CASES: dict[str, Case] = {
    "json_object": Case({"response_format": {"type": "json_object"}}, _object, "response_format", ends=False),
    "json_schema": Case(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}},
        _person,
        "response_format",
    ),
    "json": Case({"structured_outputs": {"json": SCHEMA}}, _person, kind="json"),
    "regex": Case({"structured_outputs": {"regex": REGEX}}, lambda text: bool(re.fullmatch(REGEX, text, re.ASCII)), kind="regex"),
    "choice": Case({"structured_outputs": {"choice": CHOICES}}, lambda text: text in CHOICES, kind="choice"),
    "grammar": Case(
        {"structured_outputs": {"grammar": GRAMMAR}},
        lambda text: bool(re.fullmatch(r"(\d{1,3}|\(\d\))(\+(\d{1,3}|\(\d\))){0,2}", text, re.ASCII)),
        kind="grammar",
    ),
}


def check_valid(case: Case, text: str, finish: str) -> None:
    """An answer that ended by itself is valid; one that was cut may only come of a grammar without a bound."""
    if finish == "length" and not case.ends:
        return
    assert finish == "stop", f"cut short: {text!r}"
    assert case.valid(text), f"not valid: {text!r}"
