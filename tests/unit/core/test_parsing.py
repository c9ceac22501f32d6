"""Reasoning and tool calls through the serving layer, over a token engine that says what the test wants."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xi_core.engine.base import ApiRequest, ApiSink, LoadedModel, Progress, SamplingParams, Tokenizer
from xi_core.engine.grammar import Grammar
from xi_core.errors import InvalidRequest
from xi_core.serving.parser import OutputParser, Parsed, ToolCallDelta
from xi_core.serving.parsing import Chain, Parsers, joined
from xi_core.serving.request import CHAT, parse
from xi_core.testing.fake_plugin import counting_manifest
from xi_core.testing.fakes import ByteTokenizer, CountingEngine, ScriptedEngine
from xi_core.testing.harness import Answer, Harness, plan_for
from xi_core.wire.plan import LaunchPlan

HERMES = "xi_plugins.parsers.hermes:HermesParser"
QWEN3 = "xi_plugins.parsers.qwen3:Qwen3Parser"
GPT_OSS = "xi_plugins.parsers.gpt_oss:GptOssParser"
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
THOUGHT = f"<think>\nSo it goes.\n</think>\n\nI look. {CALL}"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}>{% if enable_thinking is defined %}{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}{% endif %}"
SPECIALS = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|call|>")


class SpecialTokenizer(ByteTokenizer):
    """Bytes, and special tokens from 300 on."""

    def special_text(self, token: int) -> str:
        return SPECIALS[token - 300] if token >= 300 else ""

    def token_bytes(self, token: int) -> bytes:
        return b"" if token >= 300 else super().token_bytes(token)

    @property
    def vocabulary_size(self) -> int:
        return 400


class Speaker(CountingEngine):
    """Says `text`, a byte per token, with `SPECIALS` as single tokens; keeps the prompts that it was given."""

    text = THOUGHT
    prompts: list[str]

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        self.prompts = []
        return super().load(plan, progress)

    @property
    def tokenizer(self) -> Tokenizer:
        return SpecialTokenizer()

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        super().add(id, prompt, sampling)
        self.prompts.append(bytes(prompt).decode())
        text = self.text
        for index, special in enumerate(SPECIALS):
            text = text.replace(special, chr(0xE000 + index))
        tokens: Any = [token for c in text for token in ([300 + ord(c) - 0xE000] if 0xE000 <= ord(c) < 0xE100 else list(c.encode()))]
        self._running[id].text = tokens


@contextmanager
def speaking(text: str = THOUGHT, *, tool: str | None = HERMES, reasoning: str | None = QWEN3, **fields: Any) -> Iterator[Harness]:
    plan = plan_for("xi_core.testing.fakes:CountingEngine", "nowhere", "fake")
    plan.chat_template = TEMPLATE
    plan.parsers = {kind: path for kind, path in (("tool", tool), ("reasoning", reasoning)) if path}
    for name, value in fields.items():
        setattr(plan, name, value)
    harness = Harness(plan)
    harness.engine = Speaker()
    harness.engine.text = text
    with harness:
        yield harness


def message(answer: Answer) -> tuple[str, str, list[tuple[str, str]], str]:
    """Content, reasoning, calls and finish of the first choice, streamed or not."""
    assert answer.status == 200, answer.raw
    content = reasoning = ""
    calls: list[list[str]] = []
    if not answer.streamed:
        (choice,) = answer.body["choices"]
        said = choice["message"]
        found = [(call["function"]["name"], call["function"]["arguments"]) for call in said.get("tool_calls", [])]
        return said["content"] or "", said.get("reasoning_content", ""), found, choice["finish_reason"]
    for event in answer.events:
        for choice in event["choices"]:
            delta = choice["delta"]
            content += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or []:
                if "name" in call["function"]:
                    calls.append([call["function"]["name"], ""])
                calls[call["index"]][1] += call["function"]["arguments"]
    return content, reasoning, [(name, arguments) for name, arguments in calls], answer.finishes[0]


def ask(harness: Harness, stream: bool = False, **fields: Any) -> Answer:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return harness.chat("Hi", temperature=0, **{"tools": TOOLS, **options, **fields})


STREAMED = pytest.mark.parametrize("stream", [False, True])


@STREAMED
def test_reasoning_first_then_tools_on_what_is_left(stream: bool) -> None:
    with speaking() as harness:
        answer = ask(harness, stream)
        assert message(answer) == ("I look. ", "So it goes.", [("f", '{"a": 1}')], "tool_calls")
        assert answer.usage == {"prompt_tokens": 3, "completion_tokens": len(THOUGHT) + 1, "total_tokens": len(THOUGHT) + 4}
        assert message(ask(harness, stream, tools=None))[:3] == (f"I look. {CALL}", "So it goes.", []), "without tools a call is text"


@STREAMED
def test_an_answer_that_ends_in_its_reasoning(stream: bool) -> None:
    with speaking() as harness:
        assert message(ask(harness, stream, max_tokens=14)) == ("", "So it", [], "length")


@STREAMED
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("goes", ("", "So it", [], "stop")),
        ("look", ("I ", "So it goes.", [], "stop")),
        (".\n</think>", ("", "So it goes", [], "stop")),
        ('"arguments"', ('I look. <tool_call>\n{"name": "f", ', "So it goes.", [], "stop")),
    ],
)
def test_stop_strings_are_those_of_the_text_as_generated(stream: bool, stop: str, expected: Any) -> None:
    with speaking() as harness:
        assert message(ask(harness, stream, stop=stop)) == expected


@pytest.mark.parametrize(
    ("launch", "request_", "rendered"),
    [
        (None, None, "Hi>"),
        (True, None, "Hi><think>\n"),
        (False, None, "Hi><think>\n\n</think>\n\n"),
        (True, {"enable_thinking": False}, "Hi><think>\n\n</think>\n\n"),
        (None, {"enable_thinking": True}, "Hi><think>\n"),
    ],
)
def test_thinking_by_launch_and_by_request(launch: bool | None, request_: Any, rendered: str) -> None:
    with speaking("Yes.</think>No.", enable_thinking=launch) as harness:
        answer = ask(harness, chat_template_kwargs=request_, tools=None)
        assert harness.engine.prompts == [rendered]  # type: ignore[attr-defined]
        opened = rendered.endswith("<think>\n")
        assert message(answer)[:2] == (("No.", "Yes.") if opened else ("Yes.</think>No.", ""))


REST = ' {"a": 1}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "g"}}


@STREAMED
@pytest.mark.parametrize(
    ("fields", "opening", "text"),
    [
        ({"tool_choice": NAMED}, '<think>\n\n</think>\n\n<tool_call>\n{"name": "g", "arguments":', REST),
        ({"tool_choice": "required", "tools": TOOLS[1:]}, '<think>\n\n</think>\n\n<tool_call>\n{"name": "g", "arguments":', REST),
        ({"tool_choice": "required"}, '<think>\n\n</think>\n\n<tool_call>\n{"name": "', 'g", "arguments":' + REST),
        (
            {"tool_choice": NAMED, "chat_template_kwargs": {"enable_thinking": True}},
            '<think>\n\n</think>\n\n<tool_call>\n{"name": "g", "arguments":', REST,
        ),
        (
            {"tool_choice": NAMED, "chat_template_kwargs": {"enable_thinking": False}},
            '<think>\n\n</think>\n\n<tool_call>\n{"name": "g", "arguments":', REST,
        ),
    ],
)  # fmt: skip
def test_a_required_call_is_begun_for_the_model(stream: bool, fields: dict[str, Any], opening: str, text: str) -> None:
    with speaking(text) as harness:
        answer = ask(harness, stream, **fields)
        assert harness.engine.prompts == ["Hi>" + opening]  # type: ignore[attr-defined]
        assert message(answer) == ("", "", [("g", '{"a": 1}')], "tool_calls")
        prompt = len("Hi>" + opening)
        assert answer.usage == {"prompt_tokens": prompt, "completion_tokens": len(text) + 1, "total_tokens": prompt + len(text) + 1}


def test_each_choice_of_a_required_call() -> None:
    with speaking(REST) as harness:
        answer = ask(harness, tool_choice=NAMED, n=2, logprobs=True)
        for choice in answer.body["choices"]:
            (call,) = choice["message"]["tool_calls"]
            assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("g", {"a": 1})
            assert len(choice["logprobs"]["content"]) == len(REST), "of what the model wrote, not of what was written for it"


@STREAMED
def test_harmony_with_special_tokens(stream: bool) -> None:
    text = (
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.f<|message|>{"a": 1}'
    )
    with speaking(text, tool=GPT_OSS, reasoning=GPT_OSS) as harness:
        assert message(ask(harness, stream)) == ("Yes.", "So.", [("f", '{"a": 1}')], "tool_calls")
        assert message(ask(harness, stream, tools=None)) == ('Yes.{"a": 1}', "So.", [], "stop"), "no calls where none were offered"
    with speaking(text, tool=None, reasoning=None) as harness:
        assert "<|" not in ask(harness, stream, tools=None).text, "special tokens have no text of their own"


def test_without_a_tool_parser_there_are_no_tools() -> None:
    with speaking(tool=None) as harness:
        answer = ask(harness)
        assert answer.status == 400
        assert answer.error is not None
        assert "--tool-parser" in answer.error["message"]


class Timid(OutputParser):
    """Can't begin a call."""

    def feed(self, text: str) -> Parsed:
        return Parsed(content=text)

    def finish(self) -> Parsed:
        return Parsed()


def test_a_parser_that_can_not_begin_a_call_narrows_the_manifest() -> None:
    with speaking(tool=f"{__name__}:Timid") as harness:
        answer = ask(harness, tool_choice="required")
        assert answer.status == 400
        assert answer.error is not None
        assert answer.error["param"] == "tool_choice"
        assert ask(harness).status == 200


def parsers() -> Parsers:
    plan = plan_for("x:Y", "", "fake")
    plan.parsers = {"tool": HERMES, "reasoning": QWEN3}
    return Parsers(plan)


def job(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return parse(CHAT, json.dumps(body).encode(), counting_manifest(), "fake", {})


def test_a_form_comes_after_the_thinking() -> None:
    asked = job()
    asked.grammar = Grammar(kind="regex", text="a", param="response_format")
    for prompt, thinks in (("Hi><think>\n", True), ("Hi>", True), ("Hi></think>\n\n", False)):
        opening, grammar = parsers().opening(asked, prompt)
        assert opening == ""
        assert ("until" in str(grammar)) == thinks
        assert grammar is not None
        assert grammar.param == "response_format"
    asked.variables = {"enable_thinking": False}
    opening, grammar = parsers().opening(asked, "Hi><think>\n")
    assert opening == "\n</think>\n\n", "told not to think, it does not"
    assert "until" not in str(grammar)
    assert parsers().opening(job(), "Hi><think>\n") == ("", None)


def test_a_grammar_and_a_required_call_exclude_each_other() -> None:
    asked = job(tools=TOOLS, tool_choice="required")
    asked.grammar = Grammar(kind="regex", text="a", param="response_format")
    with pytest.raises(InvalidRequest, match="leave one of them out"):
        parsers().opening(asked, "Hi>")


def test_pieces_of_one_call_are_joined() -> None:
    one = Parsed("a", "b", [ToolCallDelta(index=0, name="f", arguments="{")])
    other = Parsed("c", "d", [ToolCallDelta(index=0, arguments="}"), ToolCallDelta(index=1, name="g")])
    whole = Parsed("ac", "bd", [ToolCallDelta(index=0, name="f", arguments="{}"), ToolCallDelta(index=1, name="g")])
    assert joined(one, other) == whole
    assert one.tool_calls[0].arguments == "{", "the pieces stay as they are"


def test_a_chain_of_none_is_content() -> None:
    assert Chain(None, None, calls=True).feed("x") == Parsed("x")


TWO = f'{CALL}\n<tool_call>{{"name": "g", "arguments": {{"b": 2}}}}</tool_call> And more.'


@STREAMED
def test_one_call_only(stream: bool) -> None:
    with speaking(TWO) as harness:
        both, last = [("f", '{"a": 1}'), ("g", '{"b": 2}')], " And more."
        assert message(ask(harness, stream)) == (last, "", both, "tool_calls")
        assert message(ask(harness, stream, parallel_tool_calls=True)) == (last, "", both, "tool_calls")
        one = ask(harness, stream, parallel_tool_calls=False)
        assert message(one) == ("", "", both[:1], "tool_calls")
        assert one.usage["completion_tokens"] < len(TWO) - len(last), "nothing is generated after the second call began"
        harness.wait_idle()


@STREAMED
def test_one_call_of_a_form_that_comes_whole(stream: bool) -> None:
    with speaking("[f(a=1), g(b=2)]", tool="xi_plugins.parsers.pythonic:PythonicParser") as harness:
        assert message(ask(harness, stream, parallel_tool_calls=False)) == ("", "", [("f", '{"a": 1}')], "tool_calls")


@STREAMED
def test_a_named_tool_is_called_once(stream: bool) -> None:
    with speaking(REST + TWO) as harness:
        named = ask(harness, stream, tool_choice=NAMED, parallel_tool_calls=True)
        assert message(named) == ("", "", [("g", '{"a": 1}')], "tool_calls")


def test_a_field_that_asks_for_one_call_must_be_honoured() -> None:
    fields = {"messages": [{"role": "user", "content": "Hi"}], "model": "m", "tools": TOOLS}
    manifest = counting_manifest()
    del manifest.endpoints[CHAT]["parallel_tool_calls"]
    assert not parse(CHAT, json.dumps({**fields, "parallel_tool_calls": True}).encode(), manifest, "fake", {}).one_call
    with pytest.raises(InvalidRequest, match="parallel_tool_calls"):
        parse(CHAT, json.dumps({**fields, "parallel_tool_calls": False}).encode(), manifest, "fake", {})


class Caller(ScriptedEngine):
    """An API engine that makes two calls, whatever it is asked; keeps the bodies."""

    bodies: list[dict[str, Any]]

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        self.bodies = []
        return super().load(plan, progress)

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        self.bodies.append(request.body)
        for index, name in enumerate("fg"):
            for function in ({"name": name}, {"arguments": "{}"}):
                delta = {"tool_calls": [{"index": index, "function": function}]}
                sink.event(request.id, json.dumps({"choices": [{"index": 0, "delta": delta}]}))
        usage = {"prompt_tokens": 3, "completion_tokens": 8}
        sink.event(request.id, json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}], "usage": usage}))
        sink.done(request.id)


@STREAMED
def test_one_call_only_of_an_engine_that_makes_more(stream: bool) -> None:
    plan = plan_for(f"{__name__}:Caller", "nowhere", "fake")
    with Harness(plan) as harness:
        assert message(ask(harness, stream))[2] == [("f", "{}"), ("g", "{}")]
        assert message(ask(harness, stream, parallel_tool_calls=False))[2:] == ([("f", "{}")], "tool_calls")
        bodies = harness.engine.bodies  # type: ignore[attr-defined]
        assert [body.get("parallel_tool_calls") for body in bodies] == [None, False]


@settings(max_examples=25, deadline=None)
@given(text=st.lists(st.sampled_from([CALL, TWO, "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {', '"x": "', '"}}', " ", "é", "<think>", "</think>", "text"]), max_size=6).map("".join))  # fmt: skip
def test_what_is_streamed_is_what_is_answered_whole(text: str) -> None:
    with speaking(text + ".") as harness:
        for fields in ({}, {"parallel_tool_calls": False}):
            assert message(ask(harness, True, **fields)) == message(ask(harness, False, **fields))
