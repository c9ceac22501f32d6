import re
from typing import Any

import msgspec
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from xi_core.api.openai import TokenLogprob, TopLogprob, Usage
from xi_core.serving.answer import DONE, Answer, answer_for
from xi_core.serving.delta import Delta
from xi_core.serving.parser import ToolCallDelta
from xi_core.serving.request import CHAT, COMPLETIONS, parse
from xi_core.testing.fake_plugin import full_manifest

USAGE = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
PROB = TokenLogprob(token="é", logprob=-0.5, bytes=[195, 169], top_logprobs=[TopLogprob(token="é", logprob=-0.5, bytes=[195, 169])])


def answer(route: str = CHAT, **fields: Any) -> Answer:
    given = {"messages": [{"role": "user", "content": "Hi"}]} if route == CHAT else {"prompt": "Hi"}
    job = parse(route, msgspec.json.encode({"model": "m", **given, **fields}), full_manifest(), "fake", {})
    return answer_for(job, "m", ["Hi", "Ho"] if job.echo else ())


def events(data: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(part[6:]) for part in data.split(b"\n\n") if part and part != b"data: [DONE]"]


def test_role_rides_on_the_first_content() -> None:
    stream = answer(stream=True)
    first, second = events(stream.add(Delta(text='a"\n')) + stream.add(Delta(text="b")))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": 'a"\n'}
    assert second["choices"][0]["delta"] == {"content": "b"}
    assert first["choices"][0]["finish_reason"] is None
    ChatCompletionChunk.model_validate(first, strict=True)


def test_finish_is_a_chunk_of_its_own_and_done_ends() -> None:
    stream = answer(stream=True)
    content, finish = events(stream.add(Delta(text="a", finish="length")))
    assert content["choices"][0]["finish_reason"] is None
    assert finish["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert stream.end(USAGE) == DONE


def test_an_empty_answer_still_names_the_role() -> None:
    first, finish = events(answer(stream=True).add(Delta(finish="stop")))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert finish["choices"][0]["finish_reason"] == "stop"


def test_usage_when_asked() -> None:
    stream = answer(stream=True, stream_options={"include_usage": True})
    assert events(stream.add(Delta(text="a")))[0]["usage"] is None
    last = events(stream.end(USAGE))[-1]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_tool_calls_stream_and_gather_alike() -> None:
    deltas = [
        Delta(tool_calls=[ToolCallDelta(index=0, name="f", arguments="")]),
        Delta(tool_calls=[ToolCallDelta(index=0, arguments='{"a":')]),
        Delta(tool_calls=[ToolCallDelta(index=0, arguments="1}")], finish="tool_calls"),
    ]
    stream, whole = answer(stream=True), answer()
    chunks = events(b"".join(stream.add(delta) for delta in deltas))
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "f"
    assert re.fullmatch("[A-Za-z0-9]{9}", calls[0]["id"]), "else the templates of Mistral's models refuse it when it comes back"
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a":1}'
    for delta in deltas:
        whole.add(delta)
    body = ChatCompletion.model_validate_json(whole.end(USAGE), strict=True)
    message = body.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"a":1}'
    assert body.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_keeps_the_id_that_the_engine_gave_it(stream: bool) -> None:
    one = answer(stream=stream)
    data = one.add(Delta(tool_calls=[ToolCallDelta(index=0, name="f", arguments="{}", id="functions.f:0")], finish="tool_calls"))
    assert b'"id":"functions.f:0"' in data + one.end(USAGE)


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(stream: bool) -> None:
    one = answer(stream=stream, logprobs=True, top_logprobs=1)
    data = one.add(Delta(text="é", logprobs=[PROB], finish="stop")) + one.end(USAGE)
    choice = events(data)[0]["choices"][0] if stream else msgspec.json.decode(data)["choices"][0]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}]


def test_completion_with_echo() -> None:
    one = answer(COMPLETIONS, echo=True)
    one.add(Delta(text="é", finish="stop"))
    assert msgspec.json.decode(one.end(USAGE))["choices"][0]["text"] == "Hié"
    one = answer(COMPLETIONS, echo=True, stream=True)
    chunks = events(one.add(Delta(text="é")) + one.add(Delta(text="é", finish="stop")))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hié", "é"]


PROMPTS = {"prompt": ["Hi", "Ho"], "n": 2, "echo": True, "return_token_ids": True}


def test_choices_of_several_prompts() -> None:
    """Those of one prompt stand together, each with its own prompt's text and ids."""
    one = answer(COMPLETIONS, **PROMPTS)
    one.prompt_ids = [[1, 2], [3]]
    for index in (3, 0, 2, 1):
        one.add(Delta(index=index, text=f" {index}", token_ids=[index], finish="stop"))
    choices = msgspec.json.decode(one.end(USAGE))["choices"]
    assert [(c["index"], c["text"], c["token_ids"], c["prompt_token_ids"]) for c in choices] == [
        (0, "Hi 0", [0], [1, 2]),
        (1, "Hi 1", [1], [1, 2]),
        (2, "Ho 2", [2], [3]),
        (3, "Ho 3", [3], [3]),
    ]


def test_chunks_of_several_prompts() -> None:
    one = answer(COMPLETIONS, stream=True, **PROMPTS)
    one.prompt_ids = [[1, 2], [3]]
    chunks = events(one.add(Delta(index=3, text="a")) + one.add(Delta(index=0, text="b")) + one.add(Delta(index=3, text="c")))
    found = [chunk["choices"][0] for chunk in chunks]
    assert [(c["index"], c["text"], c.get("prompt_token_ids")) for c in found] == [(3, "Hoa", [3]), (0, "Hib", [1, 2]), (3, "c", None)]


def test_completion_body_with_offsets() -> None:
    one = answer(COMPLETIONS, logprobs=1)
    one.add(Delta(text="é", logprobs=[PROB]))
    one.add(Delta(text="é", logprobs=[PROB], finish="stop"))
    body = Completion.model_validate_json(one.end(USAGE), strict=True)
    assert body.choices[0].text == "éé"
    assert body.choices[0].logprobs is not None
    assert body.choices[0].logprobs.text_offset == [0, 1]


def test_of_alternatives_with_the_same_text_the_likeliest_stands() -> None:
    """Bytes of several characters are shown by the same mark."""
    tops = [TopLogprob(token="\ufffd", logprob=value, bytes=[byte]) for value, byte in ((-0.1, 0xE4), (-2.0, 0xE5))]
    one = answer(COMPLETIONS, logprobs=2)
    one.add(Delta(text="", logprobs=[TokenLogprob(token="\ufffd", logprob=-0.1, bytes=[0xE4], top_logprobs=tops)], finish="length"))
    assert msgspec.json.decode(one.end(USAGE))["choices"][0]["logprobs"]["top_logprobs"] == [{"\ufffd": -0.1}]


def test_completion_stream_offsets_go_on() -> None:
    one = answer(COMPLETIONS, logprobs=1, stream=True)
    chunks = events(one.add(Delta(text="é", logprobs=[PROB])) + one.add(Delta(text="é", logprobs=[PROB], finish="stop")))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["é", "é"]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [1]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_choices_are_kept_apart() -> None:
    one = answer(n=2)
    for delta in (Delta(index=1, text="b"), Delta(index=0, text="a", finish="stop"), Delta(index=1, text="c", finish="length")):
        one.add(delta)
    choices = msgspec.json.decode(one.end(USAGE))["choices"]
    assert [(c["message"]["content"], c["finish_reason"]) for c in choices] == [("a", "stop"), ("bc", "length")]
