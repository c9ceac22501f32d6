"""What a request says of its answer's form: the small form of schemas, and all that is refused."""

from typing import Any

import msgspec
import pytest

from xi_core.api.openai import ChatRequest, CompletionRequest
from xi_core.engine.grammar import Grammar
from xi_core.errors import InvalidRequest, UnsupportedField
from xi_core.serving.request import CHAT, Job, parse
from xi_core.serving.schema import MAX_SCHEMA_DEPTH, normalise
from xi_core.serving.structured import engine_fields, grammar_in, grammar_of
from xi_core.wire.manifest import COMMON_FIELDS, STRUCTURED_FIELDS, YES, limited, of_fields

CELLS = dict.fromkeys((*COMMON_FIELDS, *STRUCTURED_FIELDS, "tools", "tool_choice"), YES)
TOOL = {"type": "function", "function": {"name": "f"}}


def chat(**fields: Any) -> ChatRequest:
    return msgspec.convert({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}, ChatRequest)


def job(cells: dict[str, Any], **fields: Any) -> Job:
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields})
    return parse(CHAT, body, of_fields(chat=cells), "fake", {})


@pytest.mark.parametrize(
    ("given", "small"),
    [
        ({}, {}),
        ({"title": "T", "description": "d", "default": 1}, {}),
        ({"type": "string", "title": "T", "minimum": 3}, {"type": "string"}),
        ({"const": 5}, {"enum": [5]}),
        ({"enum": ["a", 1, None], "type": "string"}, {"enum": ["a"]}),
        ({"enum": [True, 1], "type": "integer"}, {"enum": [1]}),
        ({"type": ["string", "null"], "maxLength": 3}, {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}),
        ({"properties": {"a": True}}, {"type": "object", "properties": {"a": {}}, "required": [], "additionalProperties": False}),
        ({"type": "object", "additionalProperties": False}, {"type": "object", "properties": {}, "required": [], "additionalProperties": False}),
        ({"type": "object", "additionalProperties": {"type": "null"}}, {"type": "object", "additionalProperties": {"type": "null"}}),
        ({"type": "object"}, {"type": "object"}),
        ({"minimum": 1}, {"type": "number", "minimum": 1}),
        ({"items": {"type": "null"}, "minItems": 2}, {"type": "array", "items": {"type": "null"}, "minItems": 2}),
        ({"prefixItems": [{}, {}], "minItems": 2}, {"type": "array", "prefixItems": [{}, {}], "items": False, "minItems": 2, "maxItems": 2}),
        (
            {"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {}}, "required": ["b"]}], "description": "d", "type": "object", "$defs": {"a": {"properties": {"a": {"type": "null"}}}}},
            {"type": "object", "properties": {"a": {"type": "null"}, "b": {}}, "required": ["b"], "additionalProperties": False,
             "$defs": {"a": {"type": "object", "properties": {"a": {"type": "null"}}, "required": [], "additionalProperties": False}}},
        ),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "null"}}}, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}),
        ({"type": "array", "items": {"$ref": "#"}}, {"type": "array", "items": {"$ref": "#"}}),
    ],
)  # fmt: skip
def test_small_form(given: dict[str, Any], small: dict[str, Any]) -> None:
    assert normalise(given, "p") == small
    assert normalise(small, "p") == small, "the small form stays as it is"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


DOUBLING = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {"type": "null"}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {}}, "'not'"), ({"type": "object", "properties": {"a": {"uniqueItems": True}}}, "'uniqueItems' is not supported"),
        ({"patternProperties": {}}, "'patternProperties'"), ({"type": "frob"}, "'type'"), ({"type": []}, "'type'"), ({"type": [{}]}, "'type'"),
        ({"enum": []}, "'enum'"), ({"enum": ["a"], "type": "null"}, "'enum'"), ({"enum": [1], "minimum": 0}, "'minimum' beside 'enum'"),
        ({"anyOf": []}, "'anyOf'"), ({"anyOf": [{}], "type": "null"}, "'type' beside 'anyOf'"), ({"allOf": [{"type": "null"}, {"type": "string"}]}, "'allOf' whose schemas differ in 'type'"),
        ({"allOf": [{"additionalProperties": False}, {}]}, "'additionalProperties'"), ({"allOf": [5, {}]}, "'allOf'"), ({"allOf": [{"$ref": "#"}, {}]}, "'$ref'"),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"a": {"type": "null"}}}]}, "'properties'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}}, "leads to itself"),
        ({"$ref": "http://example.com/x"}, "'$ref'"), ({"$ref": "#/$defs/x"}, "does not define"), ({"$ref": 5}, "'$ref'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "leads to itself"), ({"$ref": "#"}, "leads to itself"),
        ({"anyOf": [{"$ref": "#"}, {}]}, "leads to itself"), ({"$ref": "#/$defs/d0", "$defs": DOUBLING}, "alternatives"),
        ({"required": ["a"]}, "'required' names 'a'"), ({"required": "a"}, "'required'"), ({"properties": []}, "must be an object"),
        ({"properties": {"a": 5}}, "at properties.a"), ({"items": False}, "must be an object, or true"),
        ({"prefixItems": [{}], "maxItems": 0}, "'prefixItems'"), ({"minItems": 3, "maxItems": 2}, "'maxItems' is below"),
        ({"minLength": -1}, "'minLength'"), ({"maxLength": 2001}, "'maxLength'"), ({"maxLength": True}, "'maxLength'"),
        ({"format": "email"}, "'format'"), ({"format": "date", "maxLength": 3}, "beside 'format'"), ({"pattern": 5}, "'pattern'"),
        ({"type": "integer", "minimum": 0.5}, "'minimum'"), ({"type": "number", "maximum": "x"}, "'maximum'"), ({"minimum": 1e300}, "10^15"),
        ({"enum": ["x" * 70_000]}, "64 KiB"), (nested(MAX_SCHEMA_DEPTH + 1), "deep"), ({"$defs": 5}, "must be an object"),
        ({"items": {"$defs": {}}}, "'$defs'"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalise(schema, "structured_outputs.json")
    assert words in caught.value.message
    assert caught.value.param == "structured_outputs.json"


def test_as_deep_as_allowed() -> None:
    assert normalise(nested(MAX_SCHEMA_DEPTH), "p")["type"] == "array"


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar(kind="json_schema", text='{"type":"object"}', param="response_format")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 1}, "strict": False}}},
            Grammar(kind="json_schema", text='{"enum":[1]}', param="response_format.json_schema.schema"),
        ),
        ({"structured_outputs": {"json": {"type": "null"}}}, Grammar(kind="json_schema", text='{"type":"null"}', param="structured_outputs.json")),
        ({"structured_outputs": {"regex": "a+"}}, Grammar(kind="regex", text="a+", param="structured_outputs.regex")),
        ({"structured_outputs": {"choice": ["a", "b", "a"]}}, Grammar(kind="choice", text='["a","b"]', param="structured_outputs.choice")),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Grammar(kind="gbnf", text='root ::= "a"', param="structured_outputs.grammar")),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, Grammar(kind="regex", text="a", param="structured_outputs.regex")),
        ({"structured_outputs": {"regex": "a"}, "tools": [TOOL], "tool_choice": "none"}, Grammar(kind="regex", text="a", param="structured_outputs.regex")),
    ],
)  # fmt: skip
def test_grammars_of_requests(fields: dict[str, Any], grammar: Grammar | None) -> None:
    found = grammar_of(chat(**fields))
    assert found == grammar
    if found is not None:  # an API engine reads the same
        again = grammar_in(engine_fields(found))
        assert again is not None
        assert (again.kind, again.text) == (found.kind, found.text)
        assert found.param.startswith(again.param)


def test_completions_have_it_too() -> None:
    request = msgspec.convert({"model": "m", "prompt": "x", "structured_outputs": {"choice": ["a"]}}, CompletionRequest)
    found = grammar_of(request)
    assert found is not None
    assert found.kind == "choice"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"name": "n", "schema": {}}}}, "response_format.json_schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: 'a'"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "%llguidance {}\nroot ::= x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"regex": "a"}, "tools": [TOOL]}, "structured_outputs"),
        ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, "response_format"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar_of(chat(**fields))
    assert caught.value.param == param


def test_the_manifest_decides() -> None:
    assert job(CELLS, structured_outputs={"regex": "a"}).grammar is not None
    bare = dict.fromkeys(COMMON_FIELDS, YES)
    assert job(bare, response_format={"type": "text"}).grammar is None, "every engine gives text"
    for fields in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a"}}):
        with pytest.raises(UnsupportedField):
            job(bare, **fields)
    some = CELLS | {"structured_outputs": limited("json", "choice", reason="no others")}
    assert job(some, structured_outputs={"choice": ["a"]}).grammar is not None
    with pytest.raises(UnsupportedField) as caught:
        job(some, structured_outputs={"regex": "a"})
    assert caught.value.param == "structured_outputs.regex"
    assert "json, choice (no others)" in caught.value.message
