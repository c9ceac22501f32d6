"""Grammars of calls and of answers behind reasoning: whatever text is in them, the model's own parsers read the call that was meant."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from xi_core.api.openai import Tool
from xi_core.engine.grammar import Grammar, GrammarCompiler
from xi_core.errors import InvalidRequest, UnsupportedField
from xi_core.importing import import_path
from xi_core.serving.calls import FREE, Calls, after_thought, arguments
from xi_core.serving.parser import OutputParser, Thought
from xi_core.serving.parsing import Chain, Parsers
from xi_core.serving.request import CHAT, parse
from xi_core.testing.fake_plugin import counting_manifest
from xi_core.testing.fakes import END, ByteTokenizer
from xi_core.testing.harness import plan_for
from xi_core.testing.schema_check import fits
from xi_core.wire.manifest import YES, Manifest
from xi_plugins import parsers

pytest.importorskip("llguidance")
INFOS = {info.name: info for info in parsers.xi_parsers()}
TOOLS = sorted(name for name, info in INFOS.items() if info.kind == "tool")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "where": {"$ref": "#/$defs/Place"},
        "kinds": {"type": "array", "items": {"enum": ["sun", 'r"\\n', None, True]}, "maxItems": 2},
    },
    "required": ["city", "where"],
    "additionalProperties": False,
    "$defs": {
        "Place": {"type": "object", "properties": {"north": {"type": "boolean"}}, "required": ["north"], "additionalProperties": False}
    },
}
COUNT = {"type": "object", "properties": {"n": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}}, "additionalProperties": False}
FUNCTIONS: dict[str, dict[str, Any] | None] = {"look": SCHEMA, "count": COUNT, "stop": None}


class Tokens(ByteTokenizer):
    """Bytes; and tokens without text, from 257 on, for the special tokens of a parser."""

    def __init__(self, specials: frozenset[str]) -> None:
        self.specials = sorted(specials)
        self.compiler = GrammarCompiler(self, [END])

    def encode(self, text: str) -> list[int]:
        return [END + 1 + self.specials.index(text)] if text in self.specials else super().encode(text)

    def special_text(self, token: int) -> str:
        return self.specials[token - END - 1] if token > END else ""

    @property
    def vocabulary_size(self) -> int:
        return END + 1 + len(self.specials)


def tool(name: str, **fields: Any) -> dict[str, Any]:
    parameters = FUNCTIONS.get(name)
    return {"type": "function", "function": {"name": name, **({"parameters": parameters} if parameters else {}), **fields}}


def walk(grammar: Grammar, tokens: Tokens, seed: int, most: int = 4000) -> str:
    """A random text of the grammar."""
    matcher, chance = tokens.compiler.matcher(grammar), random.Random(seed)
    found: list[bytes] = []
    for _ in range(most):
        mask = matcher.allowed()
        allowed = [token for token in range(tokens.vocabulary_size) if mask[token // 8] >> token % 8 & 1]
        assert allowed, "the answer can go on, or end"
        # As models do: the end where there is one, and closing marks rather than longer texts.
        likely = [token for token in allowed if token == END or token > END or chr(token) in '",]}:>)<'] if chance.random() < 0.6 else []
        token = chance.choice(likely or allowed)
        if token == END:
            return b"".join(found).decode()
        matcher.accept(token)
        found.append(tokens.token_bytes(token) or tokens.special_text(token).encode())
    raise AssertionError(f"no end: {b''.join(found)!r}")


def read(parser: OutputParser, text: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Content, reasoning and calls, fed in single characters."""
    parsed = [*(parser.feed(character) for character in text), parser.finish()]
    calls: list[list[str]] = []
    for piece in (piece for one in parsed for piece in one.tool_calls):
        if piece.name is not None:
            calls.append([piece.name, ""])
        calls[-1][1] += piece.arguments
    return "".join(one.content for one in parsed), "".join(one.reasoning for one in parsed), [(name, text) for name, text in calls]


def check(calls: list[tuple[str, str]]) -> None:
    for name, text in calls:
        schema = FUNCTIONS[name]
        if schema is None:
            assert json.loads(text) == {}
        else:
            assert fits(json.loads(text), schema), (name, text)


def made(name: str) -> Any:
    return import_path(INFOS[name].parser)


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", TOOLS)
def test_forced_calls_of_each_parser(name: str, named: bool, one: bool) -> None:
    tokens = Tokens(frozenset(made(name).specials))
    offered = [(place, msgspec.convert(tool(function), Tool)) for place, function in enumerate(["look"] if named else FUNCTIONS)]
    parser = made(name)()
    for opening in ("", parser.force("look" if named else None)):
        grammar = Calls(parser.form(), offered, frozenset(parser.specials)).forced(opening, one=one)
        counts = set()
        for seed in range(25):
            text = opening + walk(grammar, tokens, seed)
            content, _, calls = read(made(name)(), text)
            assert content.strip() == "", text
            assert calls, text
            check(calls)
            counts.add(len(calls))
        assert (counts == {1}) == (one or not parser.form().several), counts


@pytest.mark.parametrize("name", [name for name in TOOLS if made(name)().form().trigger or made(name)().form().first])
def test_calls_in_free_text(name: str) -> None:
    tokens = Tokens(frozenset(made(name).specials))
    form = made(name)().form()
    offered = [(place, msgspec.convert(tool(function), Tool)) for place, function in enumerate(FUNCTIONS)]
    grammar = Calls(form, offered, frozenset(made(name).specials)).triggered(one=False)

    def accepts(text: str) -> bool:
        matcher = tokens.compiler.matcher(grammar)
        for token in [*_ids(text, tokens), END]:
            if not matcher.allowed()[token // 8] >> token % 8 & 1:
                return False
            matcher.accept(token)
        return True

    assert accepts("Just text.")
    good = '{"city": "Bonn", "where": {"north": true}}'
    arguments_ = 'city="Bonn", where={"north": true}' if form.python else good
    whole = f"{form.begin}{form.before}look{form.middle}{arguments_}{form.after}{form.end}"
    assert accepts(whole)
    assert not accepts(whole.replace("Bonn", "Much too long"))
    assert not accepts(whole.replace("north", "south"))
    if form.trigger:
        assert accepts("Let me see. " + whole)
    check(read(made(name)(), whole)[2])


THOUGHTS: list[tuple[str, str, bool, bool]] = [
    # reasoning parser, end of the prompt, whether it thinks, whether it must
    ("qwen3", "", True, False), ("qwen3", "<think>\n", True, True), ("qwen3", "</think>\n\n", False, False),
    ("deepseek-r1", "", True, True), ("deepseek-r1", "<think>\n", True, True), ("gpt-oss", "", True, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "prompt", "thinks", "must"), THOUGHTS)
def test_free_reasoning_then_the_form(name: str, prompt: str, thinks: bool, must: bool) -> None:
    parser = made(name)()
    parser.begin(prompt)
    specials = frozenset(parser.specials) if name == "gpt-oss" else frozenset()
    thought: Thought | None = parser.thought()
    assert (thought is not None) == thinks
    grammar = after_thought(thought, parser.lead(), Grammar(kind="regex", text="[0-9]{3}"), specials)
    seen, tokens = set(), Tokens(specials)
    for seed in range(40):
        thinking = thought is not None and (must or seed % 2 == 1)
        ahead = f'{thought.before}I {{"think"}} <{thought.end}{thought.after}' if thought is not None and thinking else parser.lead()
        text = _thinking(grammar, tokens, ahead, seed)
        reader = made(name)()
        reader.begin(prompt)
        content, reasoning, _ = read(reader, text)
        assert len(content) == 3, text
        assert content.isdigit()
        seen.add(bool(reasoning))
    assert (True in seen) == thinks
    assert (False not in seen) == must


def _ids(text: str, tokens: Tokens) -> list[int]:
    """The tokens of a text in which special tokens stand by their names."""
    for index, special in enumerate(tokens.specials):
        text = text.replace(special, chr(0xE000 + index))
    return [id for c in text for id in ([END + 1 + ord(c) - 0xE000] if 0xE000 <= ord(c) < 0xE100 else c.encode())]


def _thinking(grammar: Grammar, tokens: Tokens, ahead: str, seed: int) -> str:
    """A text of the grammar that begins with `ahead`: a random walk would hardly end its reasoning."""
    matcher, chance = tokens.compiler.matcher(grammar), random.Random(seed)
    for token in _ids(ahead, tokens):
        assert matcher.allowed()[token // 8] >> token % 8 & 1
        matcher.accept(token)
    found = ahead
    for _ in range(20):
        mask = matcher.allowed()
        allowed = [token for token in range(tokens.vocabulary_size) if mask[token // 8] >> token % 8 & 1]
        token = chance.choice([token for token in allowed if token != ord("<")])  # which would begin to think
        if token == END:
            return found
        matcher.accept(token)
        found += tokens.special_text(token) or chr(token)
    raise AssertionError(f"no end: {found!r}")


def test_no_end_within_the_reasoning() -> None:
    grammar = after_thought(Thought(end="</think>"), "", Grammar(kind="text", text="x"), frozenset())
    matcher = GrammarCompiler(ByteTokenizer(), [END]).matcher(grammar)
    for character in b"abc</thin":
        assert not matcher.allowed()[END // 8] >> END % 8 & 1
        matcher.accept(character)


# ---- schemas --------------------------------------------------------------------------------------


def of(parameters: Any, **fields: Any) -> Grammar:
    return arguments(msgspec.convert({"function": {"name": "f", "parameters": parameters, **fields}}, Tool), 3, python=False)


@pytest.mark.parametrize(
    ("parameters", "small"),
    [
        (None, {"type": "object", "properties": {}, "required": [], "additionalProperties": False}),
        ({"type": "string"}, {"type": "object"}),
        ({"type": "object", "not": {}}, {"type": "object"}),
        ({"properties": {"a": {"format": "email", "type": "string", "maxLength": 3}}}, {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": [], "additionalProperties": False}),
        ({"properties": {"a": {"type": "array", "uniqueItems": True, "minItems": 9999}}}, {"type": "object", "properties": {"a": {"type": "array"}}, "required": [], "additionalProperties": False}),
        ({"$ref": "#/$defs/none"}, {"type": "object"}),
    ],
)  # fmt: skip
def test_what_can_not_be_said_is_free_unless_it_is_strict(parameters: Any, small: Any) -> None:
    assert json.loads(of(parameters).text) == small
    if parameters is not None:
        with pytest.raises(InvalidRequest) as caught:
            of(parameters, strict=True)
        assert caught.value.param == "tools[3].function.parameters"


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"from": {}}}, {"properties": {"a b": {}}}, {"anyOf": [{"type": "object"}]},
        {"type": "object", "properties": {"a": {"type": "array", "items": {"$ref": "#"}}}},
    ],
)  # fmt: skip
def test_what_python_can_not_write(parameters: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        arguments(msgspec.convert({"function": {"name": "f", "parameters": parameters}}, Tool), 0, python=True)
    assert caught.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("name", ["get-weather", "class", "True", "2nd", "a..b", "a.if"])
def test_tools_that_python_can_not_name(name: str) -> None:
    offered = [(place, msgspec.convert(tool(function), Tool)) for place, function in ((0, "look"), (4, name))]
    with pytest.raises(InvalidRequest, match=f"in Python, where '{name}' can't name a function") as caught:
        Calls(made("pythonic")().form(), offered, frozenset())
    assert caught.value.param == "tools[4].function.name"
    Calls(made("hermes")().form(), offered, frozenset())


def test_a_tool_with_a_dot_in_its_name_is_called_in_python() -> None:
    offered = [(0, msgspec.convert(tool("weather.now"), Tool))]
    grammar = Calls(made("pythonic")().form(), offered, frozenset()).forced("", one=True)
    text = walk(grammar, Tokens(frozenset()), 1)
    assert read(made("pythonic")(), text)[2] == [("weather.now", "{}")]


# ---- requests -------------------------------------------------------------------------------------


def opening(prompt: str = "Hi>", *, tool_parser: str = "hermes", binds: bool = True, **fields: Any) -> tuple[str, Grammar | None]:
    manifest = counting_manifest()
    if binds:
        manifest = Manifest(endpoints={route: {**cells, "response_format": YES} for route, cells in manifest.endpoints.items()})
    plan = plan_for("x:Y", "", "fake")
    plan.parsers = {"tool": INFOS[tool_parser].parser, "reasoning": INFOS["qwen3"].parser}
    found = Parsers(plan)
    found.bind(manifest)
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return found.opening(parse(CHAT, json.dumps(body).encode(), manifest, "fake", {}), prompt)


def test_a_required_call_after_thinking_or_at_once() -> None:
    begun, grammar = opening(tools=[tool("look")], tool_choice="required")
    assert begun == ""
    assert "until" in str(grammar)
    begun, grammar = opening("Hi></think>\n\n", tools=[tool("look")], tool_choice="required")
    assert begun == '<tool_call>\n{"name": "look", "arguments":'
    assert grammar is not None
    _, _, calls = read(Chain(None, made("hermes")(), calls=True), begun + walk(grammar, Tokens(frozenset()), 1))
    check(calls)


def test_a_required_call_that_may_not_end() -> None:
    with pytest.raises(InvalidRequest) as caught:
        opening(tools=[tool("look")], tool_choice="required", ignore_eos=True)
    assert caught.value.param == "ignore_eos"


def test_strict_tools_are_held_to_their_schemas_or_refused() -> None:
    assert opening(tools=[tool("look")]) == ("", None)
    begun, grammar = opening(tools=[tool("count"), tool("look", strict=True)])
    assert begun == ""
    assert FREE in grammar.parts[-1].parts  # type: ignore[union-attr]
    for fields in ({"binds": False}, {"tool_parser": "gpt-oss-tools"}, {"binds": False, "tool_choice": "required"}):
        with pytest.raises(UnsupportedField) as caught:
            opening(tools=[tool("count"), tool("look", strict=True)], **fields)
        assert caught.value.param == "tools[1].function.strict"
