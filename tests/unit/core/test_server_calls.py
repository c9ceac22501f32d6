"""What a server is asked for where calls are required or strict: a grammar, and a free choice."""

from typing import Any

import pytest
from msgspec.structs import replace

from xi_core.errors import InvalidRequest, UnsupportedField
from xi_core.serving.server_calls import HERMES, LLAMA3, PYTHONIC, server_calls
from xi_plugins.parsers.hermes import HermesParser
from xi_plugins.parsers.llama3_json import Llama3JsonParser
from xi_plugins.parsers.pythonic import PythonicParser

pytest.importorskip("llguidance")

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMED = {"type": "function", "function": {"name": "count"}}


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **fields}}


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [], "tools": [tool("look"), tool("count")], **fields}


def test_forms_are_those_of_our_own_parsers() -> None:
    assert [parser().form() for parser in (HermesParser, Llama3JsonParser, PythonicParser)] == [HERMES, LLAMA3, PYTHONIC]


@pytest.mark.parametrize("form", [HERMES, LLAMA3, PYTHONIC, None])
@pytest.mark.parametrize("fields", [{}, {"tool_choice": "auto"}, {"tool_choice": "auto", "parallel_tool_calls": False}])
def test_free_choice_has_no_grammar(form: Any, fields: dict[str, Any]) -> None:
    asked = body(**fields)
    assert server_calls(asked, form, {}) == ({**body(), "tool_choice": "auto"}, "")
    assert asked == body(**fields), "the request is left as it was"


def test_without_tools_nothing_changes() -> None:
    asked = {"prompt": "x", "stop": []}
    assert server_calls(asked, HERMES, {}) == (asked, "")


@pytest.mark.parametrize("form", [HERMES, LLAMA3, PYTHONIC])
def test_required_calls(form: Any) -> None:
    rest, several = server_calls(body(tool_choice="required"), form, {})
    assert rest == {**body(), "tool_choice": "auto"}
    assert several.startswith("%llguidance {}\nstart: ")
    assert "look" in several
    assert "count" in several
    one, named = (
        server_calls(body(tool_choice=choice, **more), form, {})[1]
        for choice, more in (("required", {"parallel_tool_calls": False}), (NAMED, {}))
    )
    assert "*" in several.replace(".|\\n)*", "")
    assert "*" not in one.replace(".|\\n)*", "")
    assert "look" not in named
    assert "count" in named


def test_special_tokens_stand_for_their_names() -> None:
    specials = {"<tool_call>": 7, "</tool_call>": 8, "<other>": 9}
    text = server_calls(body(tool_choice="required"), HERMES, specials)[1]
    assert "<[7]>" in text
    assert "<[8]>" in text
    assert "tool_call" not in text


def test_strict_tools_hold_a_free_choice_too() -> None:
    strict = body(tools=[tool("look"), tool("count", strict=True)])
    rest, text = server_calls(strict, HERMES, {})
    assert rest["tools"] == body()["tools"], "the server must not see to it in its own way"
    assert "<tool_call>" in text


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"tool_choice": "required"}, "tool_choice"), ({"tools": [tool("a"), tool("b", strict=True)]}, "tools[1].function.strict")],
)
def test_unknown_form_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedField) as caught:
        server_calls(body(**fields), None, {})
    assert caught.value.param == param


def test_forced_call_must_end() -> None:
    with pytest.raises(InvalidRequest) as caught:
        server_calls(body(tool_choice="required", ignore_eos=True), HERMES, {})
    assert caught.value.param == "ignore_eos"


def test_strict_schema_that_can_not_be_held_to_is_refused() -> None:
    wrong = tool("look", strict=True)
    wrong["function"]["parameters"] = {"type": "object", "not": {}}
    with pytest.raises(InvalidRequest) as caught:
        server_calls(body(tools=[wrong], tool_choice="required"), HERMES, {})
    assert caught.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("name", ["get-weather", "lambda", "2nd", "weather.now"])
@pytest.mark.parametrize("forced", [True, False])
def test_tools_that_a_server_can_not_read_in_python_are_refused(name: str, forced: bool) -> None:
    fields = {"tool_choice": "required"} if forced else {}
    asked = body(tools=[tool("look", strict=True), tool(name)], **fields)
    with pytest.raises(InvalidRequest, match=f"'{name}' can't name a function") as caught:
        server_calls(asked, PYTHONIC, {})
    assert caught.value.param == "tools[1].function.name"
    assert server_calls(asked, HERMES, {})[1]
    assert server_calls(body(tools=[tool("count"), tool(name)], tool_choice=NAMED), PYTHONIC, {})[1], "it can't be called here"
    assert server_calls(body(tools=[tool(name)]), PYTHONIC, {})[1] == "", "the choice is free"


def test_strict_tools_are_refused_where_calls_can_not_be_told_from_text() -> None:
    form = replace(LLAMA3, first="")
    strict = body(tools=[tool("look"), tool("count", strict=True)])
    with pytest.raises(UnsupportedField) as caught:
        server_calls(strict, form, {})
    assert caught.value.param == "tools[1].function.strict"
    assert server_calls({**strict, "tool_choice": "required"}, form, {})[1], "an answer that is a call can be held to it"
