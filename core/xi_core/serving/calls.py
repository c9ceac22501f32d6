"""Grammars of answers that are tool calls, and of what stands before a constrained answer. Pure; called by `parsing.py`, `server_calls.py`.

A parser says how its model writes calls and reasoning (`CallForm`, `Thought`); a tool's `parameters` say what arguments may be. Where
`strict` is true a schema that can't be held to is refused. Elsewhere, as in OpenAI's API, what no grammar can express is left free.
"""

from __future__ import annotations

import keyword
import re
from typing import Any

import msgspec

from xi_core.api.openai import Tool
from xi_core.engine.grammar import Grammar
from xi_core.errors import InvalidRequest
from xi_core.serving.parser import CallForm, Thought
from xi_core.serving.schema import normalise

FREE = Grammar(kind="free")
_GAP = Grammar(kind="regex", text=r"[ \t\r\n]{0,4}")
_NOTHING = Grammar(kind="sequence")
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_ROOTS = ("$defs", "definitions")


def sequence(*parts: Grammar) -> Grammar:
    """One after the other; empty ones are left out."""
    return Grammar(kind="sequence", parts=tuple(part for part in parts if part != _NOTHING))


def _one_of(parts: list[Grammar]) -> Grammar:
    return parts[0] if len(parts) == 1 else Grammar(kind="one_of", parts=tuple(parts))


def _optional(part: Grammar) -> Grammar:
    return Grammar(kind="optional", parts=(part,))


def _repeat(part: Grammar) -> Grammar:
    return Grammar(kind="repeat", parts=(part,))


def written(text: str, specials: frozenset[str]) -> Grammar:
    """A text in which the names of special tokens stand for these."""
    names = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
    pieces = re.split(f"({names})", text) if names else [text]
    return sequence(*(Grammar(kind="special" if piece in specials else "text", text=piece) for piece in pieces if piece))


def after_thought(thought: Thought | None, lead: str, answer: Grammar, specials: frozenset[str]) -> Grammar:
    """`answer`, behind reasoning that is free text."""
    if thought is None:
        return sequence(written(lead, specials), answer)
    gap = written(thought.after, specials) if thought.after else _GAP
    reasoning = sequence(written(thought.before, specials), Grammar(kind="until", text=thought.end), gap)
    return sequence(_optional(reasoning) if thought.optional else reasoning, written(lead, specials), answer)


class Calls:
    """Grammars of calls in one form."""

    def __init__(self, form: CallForm, tools: list[tuple[int, Tool]], specials: frozenset[str]) -> None:
        """`tools`: those that may be called, with their places in the request. Raises `InvalidRequest` for a schema or name."""
        self._form = form
        self._specials = specials
        if form.python:
            for place, tool in tools:
                check_name(tool.function.name, place)
        self._tools = [(tool.function.name, arguments(tool, place, python=form.python)) for place, tool in tools]

    def forced(self, opening: str, *, one: bool) -> Grammar:
        """One call or, without `one`, more; and nothing else. `opening`, which they begin with, stands already."""
        form = self._form
        parts = [self._any(form.begin + form.before, opening)]
        if form.several and not one:
            parts.append(_repeat(self._any(form.between + form.before)))
        return sequence(*parts, written(form.end, self._specials))

    def triggered(self, *, one: bool) -> Grammar:
        """Free text with calls in it. Raises nothing: forms without `trigger` and `first` are not asked."""
        form = self._form
        if form.trigger:
            block = sequence(Grammar(kind="until", text=form.trigger), self.forced(form.trigger, one=one))
            return sequence(_optional(block) if one else _repeat(block), FREE)
        text = Grammar(kind="regex", text=rf"[ \t\r\n]*([^ \t\r\n\{form.first}](.|\n)*)?")
        return _one_of([self.forced("", one=one), text])

    def _any(self, start: str, opening: str = "") -> Grammar:
        """A call of any tool, behind `start`, of which `opening` stands already."""
        calls = []
        for name, inner in self._tools:
            head = start + name + self._form.middle
            if not head.startswith(opening):
                raise ValueError(f"the parser begins a call with {opening!r}, but its form with {head!r}")
            calls.append(sequence(written(head[len(opening) :], self._specials), inner, written(self._form.after, self._specials)))
        return _one_of(calls)


def arguments(tool: Tool, place: int, *, python: bool) -> Grammar:
    """What the arguments of a call may be. Raises `InvalidRequest`, naming the place in the request."""
    param = f"tools[{place}].function.parameters"
    strict = bool(tool.function.strict)
    given = tool.function.parameters
    try:
        schema = normalise(given, param, loose=not strict) if given else _NO_ARGUMENTS
    except InvalidRequest:
        if strict:
            raise
        schema = _ANY_OBJECT
    if not _is_object(schema, schema):
        if strict:
            raise InvalidRequest(f"{param}: arguments are an object; the schema allows something else", param=param)
        schema = _ANY_OBJECT
    return _keywords(schema, param) if python else _json(schema, param)


def _json(schema: dict[str, Any], param: str) -> Grammar:
    return Grammar(kind="json_schema", text=msgspec.json.encode(schema).decode(), param=param)


def _is_object(schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether all that fits is an object. `normalise` has refused definitions that lead to themselves."""
    if "$ref" in schema:
        return _is_object(_referred(schema["$ref"], root), root)
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return all(_is_object(part, root) for part in schema[name])
    if "enum" in schema:
        return all(isinstance(value, dict) for value in schema["enum"])
    return schema.get("type") == "object"


def _referred(target: str, root: dict[str, Any]) -> dict[str, Any]:
    if target == "#":
        return root
    _, section, name = target.split("/")
    found: dict[str, Any] = root[section][name]
    return found


# ---- calls in Python's syntax -------------------------------------------------------------------


def check_name(name: str, place: int, *, dotted: bool = True) -> None:
    """Raises `InvalidRequest` for a tool, at its place in the request, whose name calls no function. `dotted`: whether `a.b` does."""
    parts = name.split(".") if dotted else [name]
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        param = f"tools[{place}].function.name"
        raise InvalidRequest(f"{param}: this model writes calls in Python, where '{name}' can't name a function", param=param)


def _keywords(schema: dict[str, Any], param: str) -> Grammar:
    """`name=value, name=value`; values as in JSON, which the parser reads. An object of any keys is called without arguments."""
    object = schema
    while "$ref" in object:
        object = _referred(object["$ref"], schema)
    if "anyOf" in object or "oneOf" in object or "enum" in object or '"$ref":"#"' in msgspec.json.encode(schema).decode():
        raise InvalidRequest(f"{param}: this model's calls can't be held to a schema of alternatives, or one within itself", param=param)
    roots = {name: schema[name] for name in _ROOTS if name in schema}
    pairs: list[Grammar] = []
    properties = object.get("properties", {})
    for name, inner in properties.items():
        if not name.isidentifier() or keyword.iskeyword(name):
            raise InvalidRequest(f"{param}: this model writes calls in Python, where '{name[:60]}' can't name an argument", param=param)
        pairs.append(sequence(Grammar(kind="text", text=f"{name}="), _json({**inner, **roots}, param)))
    marks = "".join("!" if name in object["required"] else "?" for name in properties)
    return Grammar(kind="listed", text=marks, parts=tuple(pairs))
