"""`xi_plugins.parsers.hermes`."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xi_core.importing import import_path
from xi_core.serving.parser import OutputParser
from xi_plugins import parsers
from xi_plugins.parsers.hermes import HermesParser
from xi_plugins.parsers.jsontext import read_call

Outcome = tuple[str, list[tuple[str, str]]]
WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2]}}\n</tool_call>'


def run(pieces: list[str]) -> Outcome:
    """Content and calls, joined; checks that pieces of calls come in order."""
    parser, content, calls = HermesParser(), "", list[list[str]]()
    for parsed in [*(parser.feed(piece) for piece in pieces), parser.finish()]:
        content += parsed.content
        for delta in parsed.tool_calls:
            if delta.name is not None:
                assert delta.index == len(calls)
                calls.append([delta.name, ""])
            assert delta.index == len(calls) - 1
            calls[-1][1] += delta.arguments
    return content, [(name, arguments) for name, arguments in calls]


def both(text: str) -> Outcome:
    """The outcome of a text in one piece, which must be that of it in single characters."""
    outcome = run([text])
    assert run(list(text)) == outcome
    return outcome


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world", ("Hello, world", [])),
        ("a < b <tool> </tool_call> <tool_cal", ("a < b <tool> </tool_call> <tool_cal", [])),
        ("", ("", [])),
        (" \n", (" \n", [])),
        (WEATHER, ("", [("get_weather", '{"city": "Paris", "days": [1, 2]}')])),
        ("Let me look. " + WEATHER, ("Let me look. ", [("get_weather", '{"city": "Paris", "days": [1, 2]}')])),
        (WEATHER + "\n" + WEATHER + "\n", ("", [("get_weather", '{"city": "Paris", "days": [1, 2]}')] * 2)),
        (WEATHER + " then\n" + WEATHER, (" then\n", [("get_weather", '{"city": "Paris", "days": [1, 2]}')] * 2)),
        ('<tool_call>{"name":"f","arguments":{}}</tool_call>', ("", [("f", "{}")])),
        ('<tool_call>{"name":"f"}</tool_call>', ("", [("f", "{}")])),
        ('<tool_call>{"arguments": {"a" : 1}, "name": "f"}</tool_call>', ("", [("f", '{"a" : 1}')])),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [("f", '{"a": 1}')])),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}, "id": "x"}</tool_call>', ("", [("f", '{"a": 1}')])),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "}</tool_call>\\"\\\\"}}</tool_call>',
            ("", [("f", '{"a": "}</tool_call>\\"\\\\"}')]),
        ),
        ('<tool_call>{"name": "f\\u00e9", "arguments": {"é": "\\u00e9"}}</tool_call>', ("", [("fé", '{"é": "\\u00e9"}')])),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', ("", [("f", '{"a": 1}')])),
        ('<tool_call>{"name": "f", "arguments": {"a": [1, ', ("", [("f", '{"a": [1, ')])),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}<tool_call>{"name": "g"}', ("", [("f", '{"a": 1}'), ("g", "{}")])),
    ],
)
def test_what_is_made_of_a_text(text: str, expected: Outcome) -> None:
    assert both(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>not json</tool_call>",
        "<tool_call>[1]</tool_call> after",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"arguments": {"a": NaN}, "name": "f"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": -Infinity}"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "not an object"}</tool_call>',
        '<tool_call>{"name": "bad \\x escape", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f</tool_call>", "arguments": {',
        "<tool_call>__import__('os').system('true')</tool_call>",
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    assert both(text) == (text, [])


def test_what_follows_a_call_inside_its_tags_is_content() -> None:
    assert both('<tool_call>{"name": "f", "arguments": {"a": 1}} oops</tool_call>!') == ("oops!", [("f", '{"a": 1}')])


def test_content_is_held_only_while_it_may_be_a_tag() -> None:
    parser = HermesParser()
    assert parser.feed("ab<tool").content == "ab"
    assert parser.feed("box>").content == "<toolbox>"
    assert parser.feed("a < b").content == "a < b"
    assert parser.feed("<").content == ""
    assert parser.finish().content == "<"


def test_name_and_arguments_stream_as_they_come() -> None:
    parser = HermesParser()
    assert parser.feed('<tool_call>\n{"name": "f", "argu').tool_calls == []
    first = parser.feed('ments": {"ci').tool_calls
    assert [(delta.index, delta.name, delta.arguments) for delta in first] == [(0, "f", '{"ci')]
    second = parser.feed('ty": "P').tool_calls
    assert [(delta.index, delta.name, delta.arguments) for delta in second] == [(0, None, 'ty": "P')]


def test_deep_nesting_raises_nothing() -> None:
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    assert run([f'<tool_call>{{"name": "f", "arguments": {deep}}}</tool_call>'])[1] == [("f", deep)]
    assert read_call('{"arguments": ' + "[" * 100_000) is None


PIECES = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<", "tool_call>", "\n", " ", "text", '{"name": "f", "arguments": {', '{"name": ', '"g"', ',"arguments":',
        '{"a": 1}', "}", "{", "[", "]", '"', "\\", '\\"', ":", ",", "é", "😀", '{"name":"h"}', WEATHER, "</", "<tool_call>x</tool_call>",
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join), st.data())
def test_the_cut_of_the_text_does_not_matter(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(pieces) == both(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=10), ARGUMENTS), max_size=3), st.booleans(), st.text(alphabet="ab <", max_size=10))
def test_well_formed_calls_come_back(calls: list[tuple[str, dict[str, object]]], plain: bool, before: str) -> None:
    written = [(name, json.dumps(arguments, ensure_ascii=plain)) for name, arguments in calls]
    text = before + "\n".join(
        f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>' for name, arguments in written
    )
    assert both(text) == (before, written)


def test_descriptor() -> None:
    info = next(info for info in parsers.xi_parsers() if info.name == "hermes")
    assert info.kind == "tool"
    assert issubclass(import_path(info.parser), OutputParser)
