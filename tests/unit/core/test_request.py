import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xi_core.api.embeddings import EmbeddingRequest, RerankRequest
from xi_core.api.openai import ChatRequest, CompletionRequest
from xi_core.errors import ContextLengthExceeded, InvalidRequest, NotFound, UnsupportedField, XiError
from xi_core.serving.events import engine_body
from xi_core.serving.request import CHAT, COMPLETIONS, Job, message_text, parse
from xi_core.testing.fake_plugin import full_manifest
from xi_core.wire.manifest import YES, Manifest, limited, no, of_fields

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def chat(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields})


def job(body: bytes, route: str = CHAT, manifest: Manifest | None = None, **defaults: Any) -> Job:
    return parse(route, body, manifest or full_manifest(), "fake", defaults)


def refused(body: bytes, route: str = CHAT, manifest: Manifest | None = None) -> XiError:
    with pytest.raises(XiError) as caught:
        job(body, route, manifest)
    return caught.value


def test_defaults_are_the_apis_own() -> None:
    plain = job(chat())
    assert plain.sampling == {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip
    assert (plain.n, plain.stream, plain.max_tokens, plain.logprobs) == (1, False, None, None)


def test_the_models_recommendation_fills_what_the_request_leaves_open() -> None:
    assert job(chat(temperature=0.5), temperature=0.7, top_p=0.8).sampling["temperature"] == 0.5
    assert job(chat(), temperature=0.7, top_p=0.8).sampling["top_p"] == 0.8


def test_null_means_default() -> None:
    assert job(chat(temperature=None, n=None, stop=None, tools=None)).n == 1
    assert job(chat(stream=True, stream_options={"include_usage": None})).include_usage is False
    assert job(chat(stream=True, stream_options={"include_usage": True})).include_usage is True


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest])
def test_every_field_that_may_be_left_out_may_be_null(request_type: type[msgspec.Struct]) -> None:
    """But a `type`, which says what a thing is."""
    kinds = [msgspec.inspect.type_info(request_type)]
    for kind in kinds:
        if isinstance(kind, msgspec.inspect.UnionType):
            kinds += kind.types
        elif isinstance(kind, msgspec.inspect.ListType):
            kinds.append(kind.item_type)
        elif isinstance(kind, msgspec.inspect.StructType):
            for field in kind.fields:
                kinds.append(field.type)
                if not field.required and field.name != "type":
                    assert isinstance(field.type, msgspec.inspect.UnionType), (kind.cls, field.name)
                    assert field.type.includes_none, (kind.cls, field.name)


def test_null_asks_for_nothing_in_fields_that_are_not_known_either() -> None:
    """Some clients send all fields of OpenAI's API."""
    assert job(chat(store=None, metadata=None, audio=None, n=2)).n == 2
    error = refused(chat(store=None, metadata={}))
    assert (error.status, error.param) == (400, "metadata")
    within = refused(chat(stream_options={"include_usage": True, "else": None}))
    assert within.param == "stream_options.else"


def test_minus_one_and_zero_keep_all_tokens() -> None:
    assert job(chat(top_k=-1)).sampling["top_k"] == 0


def test_a_top_k_beyond_every_vocabulary_keeps_all_tokens() -> None:
    """Engines hold it in 32 bits, and some die of more."""
    assert job(chat(top_k=2**30)).sampling["top_k"] == job(chat(top_k=3_000_000_000)).sampling["top_k"] == 2**30


def test_newer_name_of_max_tokens_wins() -> None:
    assert job(chat(max_tokens=3, max_completion_tokens=5)).max_tokens == 5


def test_completions_default_to_sixteen_tokens() -> None:
    assert job(msgspec.json.encode({"model": "m", "prompt": "x"}), COMPLETIONS).max_tokens == 16


def test_choices_have_seeds_of_their_own() -> None:
    seeded = job(chat(seed=5, n=2))
    assert [seeded.seed_of(0), seeded.seed_of(1)] == [5, 6]


def test_seeds_of_choices_stay_within_64_bits() -> None:
    seeded = job(chat(seed=2**63 - 1, n=2))
    assert [seeded.seed_of(0), seeded.seed_of(1)] == [2**63 - 1, -(2**63)]
    assert job(chat(seed=-(2**63))).seed_of(0) == -(2**63)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"), ({"temperature": "warm"}, "temperature"), ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"top_k": -2}, "top_k"), ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"), ({"presence_penalty": 3}, "presence_penalty"), ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"), ({"n": 0}, "n"), ({"n": 17}, "n"), ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"), ({"max_completion_tokens": -1}, "max_completion_tokens"), ({"seed": 1.5}, "seed"),
        ({"stop": ""}, "stop"), ({"stop": ["x"] * 17}, "stop"), ({"stop": [1]}, "stop[0]"), ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
        ({"stream_options": {}}, "stream_options"), ({"logprobs": 3}, "logprobs"), ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"), ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {" 1": 1}}, "logit_bias"), ({"logit_bias": {"1_0": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"), ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"seed": 2**63}, "seed"), ({"seed": -(2**63) - 1}, "seed"), ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "a"}]}, "messages[1].content"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"messages": []}, "messages"), ({"messages": "Hi"}, "messages"), ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"), ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"), ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"parallel_tool_calls": True, "tools": [WEATHER], "tool_choice": "x"}, "tool_choice"), ({"tool_choice": "required"}, "tool_choice"), ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs"), ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": []}}, "chat_template_kwargs[...]"), ({"chat_template_kwargs": {f"n{n}": n for n in range(33)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"1": 1}}, "chat_template_kwargs"), ({"chat_template_kwargs": {"é": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a" * 65: 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": "x" * 1025}}, "chat_template_kwargs[...]"),
        ({"response_format": "json"}, "response_format"), ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format.json_schema.schema"),
        ({"structured_outputs": []}, "structured_outputs"), ({"structured_outputs": {"json": "{}"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"), ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"), ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "x" * 65537}}, "structured_outputs.grammar"), ({"structured_outputs": {"lark": "x"}}, "structured_outputs.lark"),
        ({"model": 3}, "model"), ({"user": 5}, "user"), ({"ignore_eos": 1}, "ignore_eos"), ({"return_token_ids": 1}, "return_token_ids"),
        ({"surprise": 1}, "surprise"),
    ],
)  # fmt: skip
def test_each_field_is_checked_and_named(fields: dict[str, Any], param: str) -> None:
    error = refused(chat(**fields))
    assert error.status == 400
    assert error.param == param
    assert param.split(".")[0].split("[")[0] in error.message


def test_missing_fields_are_named() -> None:
    assert refused(b'{"model": "m"}').param == "messages"
    assert refused(b'{"model": "m"}', COMPLETIONS).param == "prompt"


def test_malformed_json() -> None:
    error = refused(b'{"model": "m", ')
    assert isinstance(error, InvalidRequest)
    assert "not valid JSON" in error.message


def test_not_utf8() -> None:
    assert refused(b'{"model": "\xff"}').status == 400


def test_a_field_that_the_engine_can_not_honour_names_both() -> None:
    manifest = of_fields(chat={"max_tokens": YES, "seed": no("its sampler has none")})
    error = refused(chat(seed=1), manifest=manifest)
    assert isinstance(error, UnsupportedField)
    assert "fake" in error.message
    assert "its sampler has none" in error.message
    assert refused(chat(min_p=0.1), manifest=manifest).param == "min_p"


def test_limits_of_the_manifest() -> None:
    manifest = of_fields(chat={"n": limited(maximum=2), "tools": YES, "tool_choice": limited("none", "auto")})
    assert refused(chat(n=3), manifest=manifest).param == "n"
    assert job(chat(n=2), manifest=manifest).n == 2
    assert refused(chat(tools=[WEATHER], tool_choice="required"), manifest=manifest).param == "tool_choice"


def test_an_endpoint_that_is_not_served() -> None:
    error = refused(msgspec.json.encode({"model": "m", "prompt": "x"}), COMPLETIONS, of_fields(chat={}))
    assert isinstance(error, NotFound)
    assert CHAT in error.message


def test_tool_choice_none_hides_the_tools() -> None:
    assert job(chat(tools=[WEATHER], tool_choice="none")).tools is None
    assert job(chat(tools=[WEATHER])).tools == [WEATHER]


@pytest.mark.parametrize(("choice", "one"), [("required", False), ({"type": "function", "function": {"name": "get_weather"}}, True)])
def test_a_named_tool_is_called_once(choice: Any, one: bool) -> None:
    asked = job(
        chat(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=True), manifest=of_fields(chat={"tools": YES, "tool_choice": YES})
    )
    assert asked.one_call == one
    assert engine_body(asked, 0).get("parallel_tool_calls") == (False if one else None)


def test_a_body_nested_too_deeply() -> None:
    schema = "[" * 5000 + "]" * 5000
    body = (
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "f", "parameters": {"a": %s}}}]}'
        % schema.encode()
    )
    assert refused(body).message == "the body is nested too deeply"


def test_an_assistants_message_may_have_no_content() -> None:
    messages = [{"role": "assistant", "content": None, "refusal": None}, {"role": "user", "content": "Hi"}]
    assert [message_text(message) for message in job(chat(messages=messages)).chat.messages] == ["", "Hi"]


def test_a_call_in_the_older_form_is_not_lost_silently() -> None:
    said = {"role": "assistant", "content": None}
    assert job(chat(messages=[{**said, "function_call": None}])).chat.messages
    error = refused(chat(messages=[{"role": "user", "content": "Hi"}, {**said, "function_call": {"name": "f", "arguments": "{}"}}]))
    assert (error.status, error.param) == (400, "messages[1].function_call")
    assert "`tool_calls`" in error.message


@pytest.mark.parametrize(
    ("prompt", "least"), [("a" * 256_000, [1000]), ([1] * 700, [700]), ("", [0]), (["a" * 256, "", "a" * 999], [1, 0, 3])]
)
def test_what_each_prompt_has_at_least(prompt: Any, least: list[int]) -> None:
    body = msgspec.json.encode({"model": "m", "prompt": prompt})
    assert job(body, COMPLETIONS).least_tokens() == least


def test_parts_are_lines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    asked = job(chat(messages=[{"role": "user", "content": parts}]))
    assert message_text(asked.chat.messages[0]) == "one\ntwo"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({info.name for kind in (ChatRequest, CompletionRequest) for info in msgspec.structs.fields(kind)})


@given(
    route=st.sampled_from([CHAT, COMPLETIONS]),
    fields=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5),
    keep=st.booleans(),
)
def test_whatever_the_fields_hold_the_answer_is_a_job_or_a_refusal(route: str, fields: dict[str, Any], keep: bool) -> None:
    prompt = {"messages": [{"role": "user", "content": "x"}]} if route == CHAT else {"prompt": "x"}
    body = msgspec.json.encode({"model": "m", **fields, **(prompt if keep else {})})
    with contextlib.suppress(InvalidRequest):  # any other error fails this test
        assert parse(route, body, full_manifest(), "fake", {}).least_tokens()


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_whatever_the_bytes_are_the_answer_is_a_refusal(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(CHAT, body, full_manifest(), "fake", {})


def test_every_field_stands_in_the_table() -> None:
    """A new field of the API wants its rows of wrong values above."""
    tables = [mark.args[1] for mark in test_each_field_is_checked_and_named.pytestmark if mark.args[0] == ("fields", "param")]
    checked = {name for table in tables for fields, _ in table for name in fields}
    assert {field.name for field in msgspec.structs.fields(ChatRequest)} <= checked


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": None}, "prompt"), ({"echo": "yes"}, "echo"), ({"logprobs": True}, "logprobs"), ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"), ({"suffix": "x"}, "suffix"), ({"prompt": [2**32]}, "prompt"),
        ({"prompt": ["x"] * 65, "n": 2}, "prompt"), ({"prompt": [[]]}, "prompt"), ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt[1]"), ({"prompt": ["x", [1]]}, "prompt[1]"), ({"prompt": [[1], [2], 3]}, "prompt[2]"),
        ({"echo": True, "logprobs": 0}, "logprobs"),
    ],
)  # fmt: skip
def test_fields_of_completions_are_checked_and_named(fields: dict[str, Any], param: str) -> None:
    error = refused(msgspec.json.encode({"model": "m", "prompt": "x", **fields}), COMPLETIONS)
    assert error.status == 400
    assert (error.param or "").startswith(param)


@pytest.mark.parametrize(("given", "prompt"), [("x", "x"), (["x"], "x"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2]), ([7], [7])])
def test_one_prompt_may_stand_in_a_list(given: Any, prompt: str | list[int]) -> None:
    """LangChain's class for completions sends every prompt so."""
    one = job(msgspec.json.encode({"model": "m", "prompt": given}), COMPLETIONS)
    assert (one.prompts, one.choices) == ([prompt], 1)
    assert engine_body(one, 0)["prompt"] == prompt


@pytest.mark.parametrize("prompts", [["x", "y", "x"], [[1, 2], [3], [1, 2]]])
def test_choices_of_several_prompts(prompts: list[Any]) -> None:
    """The choice c of the prompt p is p × n + c. Every prompt has the seeds that it would have alone."""
    three = job(msgspec.json.encode({"model": "m", "prompt": prompts, "n": 2, "seed": 5}), COMPLETIONS)
    assert three.choices == 6
    bodies = [engine_body(three, index) for index in range(6)]
    assert [(body["prompt"], body["seed"]) for body in bodies] == [(prompt, seed) for prompt in prompts for seed in (5, 6)]


def test_as_many_choices_as_one_request_may_have() -> None:
    assert job(msgspec.json.encode({"model": "m", "prompt": ["x"] * 8, "n": 16}), COMPLETIONS).choices == 128
    assert job(msgspec.json.encode({"model": "m", "prompt": [1] * 5000, "n": 16}), COMPLETIONS).choices == 16, "token ids are one prompt"


def test_an_error_of_one_of_several_prompts_says_which() -> None:
    one, two = (job(msgspec.json.encode({"model": "m", "prompt": ["x"] * count}), COMPLETIONS) for count in (1, 2))
    error = ContextLengthExceeded("the prompt has 9 tokens", param="prompt")
    assert one.blame(0, error) is error
    blamed = two.blame(1, error)
    assert (type(blamed), blamed.param, blamed.message) == (ContextLengthExceeded, "prompt[1]", "prompt[1]: the prompt has 9 tokens")
    other = InvalidRequest("logit_bias: 9 is no token", param="logit_bias")
    assert two.blame(1, other) is other, "every prompt has it"
