"""Every parser on one table: what it makes of a text, whole, in single characters, and cut anywhere."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xi_core.importing import import_path
from xi_core.serving.parser import OutputParser
from xi_plugins import parsers
from xi_plugins.parsers import deepseek, gpt_oss, llama3_json, mistral, pythonic, thinking

INFOS = {info.name: info for info in parsers.xi_parsers()}
NAMES = sorted(INFOS)
TOOLS = sorted(name for name, info in INFOS.items() if info.kind == "tool")

D_CALLS, D_CALL, D_SEP, D_END, D_ALL = deepseek.CALLS, deepseek.CALL, deepseek.SEPARATOR, deepseek.CALL_END, deepseek.CALLS_END
H_START, H_CHANNEL, H_MESSAGE = gpt_oss.START, gpt_oss.CHANNEL, gpt_oss.MESSAGE
H_END, H_RETURN, H_CALL = gpt_oss.ENDS
PARIS = '{"city": "Paris", "days": [1, {"a": "}"}]}'
TAG, MARK = llama3_json.TAG, mistral.OPEN


@dataclass
class Outcome:
    """What a text came to."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)


def parser_of(name: str) -> OutputParser:
    made = import_path(INFOS[name].parser)()
    assert isinstance(made, OutputParser)
    return made


def run(name: str, pieces: list[str], prompt: str = "") -> Outcome:
    """The joined outcome; checks that pieces of calls come in order and that all of it can be written."""
    parser, outcome = parser_of(name), Outcome()
    parser.begin(prompt)
    calls: list[list[str]] = []
    for parsed in [*(parser.feed(piece) for piece in pieces), parser.finish()]:
        outcome.content += parsed.content
        outcome.reasoning += parsed.reasoning
        for delta in parsed.tool_calls:
            if delta.name is not None:
                assert delta.index == len(calls)
                calls.append([delta.name, ""])
            assert delta.index == len(calls) - 1
            calls[-1][1] += delta.arguments
    outcome.calls = [(name, arguments) for name, arguments in calls]
    return outcome


def both(name: str, text: str, prompt: str = "") -> Outcome:
    """The outcome of a text in one piece, which must be that of it in single characters."""
    outcome = run(name, [text], prompt)
    assert run(name, list(text), prompt) == outcome
    return outcome


def v3(name: str, arguments: str) -> str:
    return f"{D_CALL}function{D_SEP}{name}\n```json\n{arguments}\n```{D_END}"


def said(channel: str, text: str, end: str = H_END, start: str = f"{H_START}assistant") -> str:
    return f"{start}{H_CHANNEL}{channel}{H_MESSAGE}{text}{end}"


TABLE: list[tuple[str, str, str, Outcome]] = [
    # parser, end of the prompt, text, outcome
    ("hermes", "", f'<tool_call>{{"name": "f", "arguments": {PARIS}}}</tool_call>', Outcome(calls=[("f", PARIS)])),
    ("hermes", "", "<tool_call>?</tool_call> x", Outcome("<tool_call>?</tool_call> x")),
    # llama3_json
    ("llama3_json", "", f'{{"name": "f", "parameters": {PARIS}}}', Outcome(calls=[("f", PARIS)])),
    ("llama3_json", "", f'\n {TAG}{{"name": "f", "arguments": {{}}}}\n', Outcome("\n ", calls=[("f", "{}")])),
    ("llama3_json", "", f'{TAG}{{"type": "function", "name": "f", "parameters": {PARIS}}}', Outcome(calls=[("f", PARIS)])),
    ("llama3_json", "", '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"a": 1}}', Outcome(calls=[("f", "{}"), ("g", '{"a": 1}')])),
    ("llama3_json", "", '{"name": "f", "parameters": {}}\n{"name": "g"}', Outcome(calls=[("f", "{}"), ("g", "{}")])),
    ("llama3_json", "", f'{{"name": "f", "parameters": {{}}}};{TAG}{{"name": "g"}}', Outcome(calls=[("f", "{}"), ("g", "{}")])),
    ("llama3_json", "", f'Let me see. {TAG}{{"name": "f", "parameters": {{"a": 1}}}}', Outcome("Let me see. ", calls=[("f", '{"a": 1}')])),
    ("llama3_json", "", '{"name": "f", "parameters": {"a": [1, ', Outcome(calls=[("f", '{"a": [1, ')])),
    ("llama3_json", "", '{"name": "f", "parameters": {}, "id": 7} and so on', Outcome(" and so on", calls=[("f", "{}")])),
    ("llama3_json", "", '{"answer": [1, {"b": 2}]} is the answer', Outcome('{"answer": [1, {"b": 2}]} is the answer')),
    ("llama3_json", "", "{x} {", Outcome("{x} {")),
    ("llama3_json", "", "a {b}", Outcome("a {b}")),
    ("llama3_json", "", f"{TAG}print(1)", Outcome(f"{TAG}print(1)")),
    ("llama3_json", "", "  ", Outcome("  ")),
    # mistral
    ("mistral", "", f'{MARK}[{{"name": "f", "arguments": {PARIS}}}]', Outcome(calls=[("f", PARIS)])),
    (
        "mistral", "", f'Hm. {MARK} [{{"name": "f", "arguments": {{}}}}, {{"arguments": {{"a": 1}}, "name": "g"}}]\n',
        Outcome("Hm. ", calls=[("f", "{}"), ("g", '{"a": 1}')]),
    ),
    ("mistral", "", f"{MARK}f{PARIS}{MARK}g[ARGS]{{}}", Outcome(calls=[("f", PARIS), ("g", "{}")])),
    ("mistral", "", f'{MARK}f[CALL_ID]a1B2c3D4e[ARGS]{{"a": 1}}', Outcome(calls=[("f", '{"a": 1}')])),
    ("mistral", "", f'{MARK}{{"name": "f", "arguments": {{}}}}', Outcome(calls=[("f", "{}")])),
    ("mistral", "", f'{MARK}[{{"name": "f", "arguments": {{}}}}] then', Outcome(" then", calls=[("f", "{}")])),
    ("mistral", "", f'{MARK}[{{"name": "f", "arguments": {{}}}}, 5]', Outcome(", 5]", calls=[("f", "{}")])),
    ("mistral", "", f"{MARK}no call at all {{}}", Outcome(f"{MARK}no call at all {{}}")),
    ("mistral", "", f"{MARK}[1, 2]", Outcome(f"{MARK}[1, 2]")),
    ("mistral", "", f"{MARK}[", Outcome(f"{MARK}[")),
    ("mistral", "", MARK, Outcome(MARK)),
    ("mistral", "", f"{MARK}{'x' * 400}{{}}", Outcome(f"{MARK}{'x' * 400}{{}}")),
    ("mistral", "", "[TOOL_CALL and no more", Outcome("[TOOL_CALL and no more")),
    # deepseek
    ("deepseek", "", f"{D_CALLS}{v3('f', PARIS)}{D_ALL}", Outcome(calls=[("f", PARIS)])),
    ("deepseek", "", f"Hm.{D_CALLS}{v3('f', '{}')}\n{v3('g', PARIS)}{D_ALL}", Outcome("Hm.", calls=[("f", "{}"), ("g", PARIS)])),
    ("deepseek", "", f"{D_CALLS}{D_CALL}f{D_SEP}{PARIS}{D_END}{D_CALL}g{D_SEP}{{}}{D_END}{D_ALL}", Outcome(calls=[("f", PARIS), ("g", "{}")])),
    ("deepseek", "", f"{D_CALLS}{D_CALL}f{D_SEP}{{}}", Outcome(calls=[("f", "{}")])),
    ("deepseek", "", f"{D_CALLS}{D_CALL}f{D_SEP}{{}} oops{D_END}{D_ALL}!", Outcome("oops!", calls=[("f", "{}")])),
    ("deepseek", "", f"{D_CALLS}{D_CALL}f{D_SEP}no{D_END}", Outcome(f"{D_CALLS}{D_CALL}f{D_SEP}no{D_END}")),
    ("deepseek", "", f"{D_CALLS}{D_ALL}", Outcome(f"{D_CALLS}{D_ALL}")),
    ("deepseek", "", f"{D_CALLS}x", Outcome(f"{D_CALLS}x")),
    ("deepseek", "", D_CALLS[:-1], Outcome(D_CALLS[:-1])),
    # pythonic
    ("pythonic", "", '[f(city="Paris", days=[1, -2.5], deep={"a": None, "b": true})]', Outcome(calls=[("f", '{"city": "Paris", "days": [1, -2.5], "deep": {"a": null, "b": true}}')])),
    ("pythonic", "", "[f(), a.b(x='é]\\'')] \n", Outcome(calls=[("f", "{}"), ("a.b", '{"x": "é]\'"}')])),
    ("pythonic", "", "[f(a=(1, 'x' 'y'))] and so on", Outcome(" and so on", calls=[("f", '{"a": [1, "xy"]}')])),
    ("pythonic", "", "[f(a=1", Outcome("[f(a=1")),
    ("pythonic", "", "[see](link)", Outcome("[see](link)")),
    ("pythonic", "", "[1, 2]", Outcome("[1, 2]")),
    ("pythonic", "", "[f(1)]", Outcome("[f(1)]")),
    ("pythonic", "", "[f(**{'a': 1})]", Outcome("[f(**{'a': 1})]")),
    ("pythonic", "", "[f(a=__import__('os').system('true'))]", Outcome("[f(a=__import__('os').system('true'))]")),
    ("pythonic", "", "[f(a=[x for x in y])]", Outcome("[f(a=[x for x in y])]")),
    ("pythonic", "", "[f(a=1e999)]", Outcome("[f(a=1e999)]")),
    ("pythonic", "", "[f(a='\\ud800')]", Outcome("[f(a='\\ud800')]")),
    ("pythonic", "", "[f(a=b'x')]", Outcome("[f(a=b'x')]")),
    ("pythonic", "", "[f(a='\\d')]", Outcome(calls=[("f", '{"a": "\\\\d"}')])),
    ("pythonic", "", "Hello [f()]", Outcome("Hello [f()]")),
    # deepseek-r1
    ("deepseek-r1", "", "<think>\nSo.\n</think>\n\nYes.", Outcome("Yes.", "So.")),
    ("deepseek-r1", "assistant<think>\n", "So.\n</think>\n\nYes.", Outcome("Yes.", "So.")),
    ("deepseek-r1", "", "So. </think>Yes.", Outcome("Yes.", "So.")),
    ("deepseek-r1", "", "So  it goes ", Outcome("", "So  it goes")),
    ("deepseek-r1", "assistant</think>", "Yes. </think>", Outcome("Yes. </think>")),
    ("deepseek-r1", "", "<thi", Outcome("", "<thi")),
    # qwen3
    ("qwen3", "", "<think>\n a < b </thin \n</think>\n\nYes. <think> no </think>", Outcome("Yes. <think> no </think>", "a < b </thin")),
    ("qwen3", "<think>\n", "So.</think>Yes.\n", Outcome("Yes.\n", "So.")),
    ("qwen3", "<think>\n\n</think>\n\n", "Yes.", Outcome("Yes.")),
    ("qwen3", "", " Yes.", Outcome(" Yes.")),
    ("qwen3", "", "<think>\n\n</think>\n\nYes.", Outcome("Yes.")),
    ("qwen3", "", "<think>So", Outcome("", "So")),
    ("qwen3", "", " \n<thin", Outcome(" \n<thin")),
    # gpt-oss
    ("gpt-oss", "", said("analysis", "So.", start="") + said("final", "Yes.", H_RETURN), Outcome("Yes.", "So.")),
    ("gpt-oss", "", said("analysis", "So.", start="") + said("commentary", "I look. ") + said("final", "Yes.", ""), Outcome("I look. Yes.", "So.")),
    ("gpt-oss", "", said("commentary to=functions.f <|constrain|>json", PARIS, H_CALL, start=""), Outcome(calls=[("f", PARIS)])),
    ("gpt-oss", "", f" to=functions.f{H_CHANNEL}commentary json{H_MESSAGE}{PARIS}", Outcome(calls=[("f", PARIS)])),
    ("gpt-oss", "", said("commentary to=functions.f", "", H_CALL, start="") + said("commentary to=functions.g", "{}", H_CALL), Outcome(calls=[("f", "{}"), ("g", "{}")])),
    ("gpt-oss", "", said("analysis to=python", "1 + 1", H_CALL, start=""), Outcome("", "1 + 1")),
    ("gpt-oss", "", said("odd", "text", start=""), Outcome("text")),
    ("gpt-oss", "", "Plain < text to=", Outcome("Plain < text to=")),
    ("gpt-oss", "", f"{H_CHANNEL}final and no more", Outcome(f"{H_CHANNEL}final and no more")),
    ("gpt-oss", "", f"{H_CHANNEL}{'x' * 600}{H_MESSAGE}", Outcome(f"{H_CHANNEL}{'x' * 600}{H_MESSAGE}")),
    ("gpt-oss-tools", "", said("commentary to=functions.f", PARIS, H_CALL, start=""), Outcome(calls=[("f", PARIS)])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "prompt", "text", "expected"), TABLE, ids=[f"{row[0]}-{index}" for index, row in enumerate(TABLE)])
def test_what_is_made_of_a_text(name: str, prompt: str, text: str, expected: Outcome) -> None:
    assert both(name, text, prompt) == expected


def test_every_parser_stands_in_the_table() -> None:
    assert {row[0] for row in TABLE} == set(NAMES)


PIECES = [
    "<", ">", " ", "\n", "text", "é", "😀", '"', "\\", "'", "{", "}", "[", "]", "(", ")", ",", ";", ":", "=", '{"name": "f", ', '"arguments": ', '"parameters": ', "{}",
    PARIS, "[f(", "a=1", "functions.", "to=functions.f", "assistant", "analysis", "final", "commentary", "```", "json", "function", "\ud800", "\\ud800",
    TAG, MARK, "[ARGS]", "[CALL_ID]", "<tool_call>", "</tool_call>", thinking.OPEN, thinking.CLOSE, "<|constrain|>", *gpt_oss.ENDS,
    H_START, H_CHANNEL, H_MESSAGE, D_CALLS, D_CALL, D_SEP, D_END, D_ALL, pythonic.PythonicParser.opening,
]  # fmt: skip
VALID = sorted({row[2] for row in TABLE if row[3].calls or row[3].reasoning})


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid output with a few pieces cut out, doubled or put in."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(st.sampled_from(["", text[start:end] * 2, *PIECES])) + text[end:]
    return text


ANY = mutated() | st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=40)


@settings(max_examples=250, deadline=None)
@given(name=st.sampled_from(NAMES), text=ANY, prompt=st.sampled_from(["", "<think>\n", "</think>\n\n"]), data=st.data())
def test_the_cut_of_the_text_does_not_matter(name: str, text: str, prompt: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    outcome = run(name, pieces, prompt)
    assert outcome == both(name, text, prompt)
    if "\ud800" not in text:
        repr_of_all = outcome.content + outcome.reasoning + "".join(map("".join, outcome.calls))
        assert repr_of_all.encode().decode() == repr_of_all, "all of it can be sent"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{" * 50_000, '{"a":' * 20_000, "[f(a=" + "-" * 60_000, "[f(a=" + "(" * 40_000 + ")" * 40_000 + ")]"]
)
def test_deep_nesting_raises_nothing(name: str, text: str) -> None:
    outcome = run(name, [text])
    assert outcome.content == text or outcome.reasoning == text


@pytest.mark.parametrize(
    ("name", "text"), [("hermes", '<tool_call>{"name": "'), ("llama3_json", '{"name": "'), ("mistral", f'{MARK}[{{"name": "')]
)
def test_a_name_without_an_end_is_not_read_again_and_again(name: str, text: str) -> None:
    """A model that repeats itself must not take a millisecond per token of the loop that serves all."""
    parser = parser_of(name)
    parser.feed(text)
    began = time.process_time()
    for _ in range(10_000):
        assert parser.feed("aaaa").content == ""
    assert time.process_time() - began < 2.0
    assert parser.finish().content == text + "aaaa" * 10_000


def test_a_long_name_comes_with_its_call() -> None:
    name = "a" * 300
    assert both("hermes", f'<tool_call>{{"name": "{name}", "arguments": {{"a": 1}}}}</tool_call>').calls == [(name, '{"a": 1}')]
    assert both("llama3_json", f'{{"name": "{name}", "parameters": {{"a": 1}}}}').calls == [(name, '{"a": 1}')]


CLOSERS = {
    "hermes": "}\n</tool_call>", "llama3_json": "}", "mistral": "}]", "deepseek": f"\n```{D_END}{D_ALL}", "pythonic": "", "gpt-oss-tools": H_CALL,
}  # fmt: skip


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("named", [True, False])
def test_a_forced_call(name: str, named: bool) -> None:
    """What is forced begins a call; what the model then writes completes it."""
    forced = parser_of(name).force("get_weather" if named else None)
    assert forced is not None
    whole = parser_of(name).force("get_weather") or ""
    text = whole + ('city="Paris")]' if name == "pythonic" else ' {"city": "Paris"}' + CLOSERS[name])
    assert whole.startswith(forced)
    (call,) = both(name, text).calls
    assert call[0] == "get_weather"
    assert json.loads(call[1]) == {"city": "Paris"}


@pytest.mark.parametrize("end", ["<think>", "</think>"])
def test_a_forced_call_of_deepseek_v3_1(end: str) -> None:
    parser = parser_of("deepseek")
    parser.begin(f"<｜Assistant｜>{end}")
    assert both("deepseek", f'{parser.force("f")}{{"a": 1}}{D_END}{D_ALL}').calls == [("f", '{"a": 1}')]
    assert (parser.force("f") or "").startswith(parser.force(None) or "?")


def test_names_that_python_can_not_write_are_not_forced() -> None:
    assert [parser_of("pythonic").force(name) for name in ("get-weather", "class", "a.if")] == [None, None, None]
    assert parser_of("pythonic").force("a.b") == "[a.b("


@pytest.mark.parametrize("name", ["deepseek-r1", "qwen3"])
@pytest.mark.parametrize("prompt", ["", "<think>\n", "<think>\n\n</think>\n\n"])
def test_thinking_can_be_skipped(name: str, prompt: str) -> None:
    parser = parser_of(name)
    parser.begin(prompt)
    assert both(name, parser.skip() + "Yes.", prompt) == Outcome("Yes.")


def test_arguments_stream_as_they_come() -> None:
    starts: dict[str, tuple[str, str]] = {
        "hermes": ('<tool_call>{"name": "f", "arguments": ', '{"ci'), "llama3_json": ('{"name": "f", "parameters": ', '{"ci'),
        "mistral": (f'{MARK}[{{"name": "f", "arguments": ', '{"ci'), "deepseek": (f"{D_CALLS}{D_CALL}f{D_SEP}", '{"ci'),
        "gpt-oss-tools": (f"{H_CHANNEL}commentary to=functions.f{H_MESSAGE}", '{"ci'),
    }  # fmt: skip
    assert set(starts) | {"pythonic"} == set(TOOLS)
    for name, (head, piece) in starts.items():
        parser = parser_of(name)
        deltas: list[Any] = [*parser.feed(head).tool_calls, *parser.feed(piece).tool_calls, *parser.feed('ty": "P').tool_calls]
        assert deltas[0].name == "f"
        assert "".join(delta.arguments for delta in deltas) == '{"city": "P', name


def test_reasoning_streams_as_it_comes() -> None:
    parser = parser_of("qwen3")
    assert parser.feed("<think>\nSo it").reasoning == "So it"
    assert parser.feed(" goes").reasoning == " goes"
    parser = parser_of("gpt-oss")
    assert parser.feed(f"{H_CHANNEL}analysis{H_MESSAGE}So it").reasoning == "So it"
    assert parser.feed(" goes<").reasoning == " goes"
