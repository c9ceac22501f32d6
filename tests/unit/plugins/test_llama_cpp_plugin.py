"""The light parts of the engine `llama.cpp`: descriptor, options, header, sizes, translation, stop strings."""

from __future__ import annotations

import json
import struct
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from xi_core.engine.base import ApiRequest
from xi_core.engine.formats import PATTERNS
from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.errors import ArtifactError, InvalidRequest, UnknownOption, UnsupportedField
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.engines.llama_cpp import plugin
from xi_plugins.engines.llama_cpp.gguf import Header, read_header
from xi_plugins.engines.llama_cpp.options import ALIASES, LlamaCppOptions
from xi_plugins.engines.llama_cpp.stopping import StopStream
from xi_plugins.engines.llama_cpp.threads import CallThreads
from xi_plugins.engines.llama_cpp.translate import CHAT, COMPLETIONS, Limits, refusal, refusal_of, to_llama

HOST = HostInfo(system="Linux", machine="x86_64", python="3.11", cpus=2, memory=2**33)
LIMITS = Limits(context_length=1024, vocabulary_size=2048)
HEADER = Header(
    architecture="qwen2", context_length=4096, vocabulary_size=2048, kv_values=1024, has_chat_template=True, size=64 * 1024 * 1024
)
NEUTRAL = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0, "stop": [], "ignore_eos": False,
}  # fmt: skip


def info() -> EngineInfo:
    return next(iter(plugin.xi_engines()))


def spec(format: str = "ggufv2", **fields: str) -> ModelSpec:
    return ModelSpec(name="m", format=format, source=SourceRef(source="local", id="m"), **fields)


def translated(route: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if route == CHAT else {"prompt": "hi"}
    return to_llama(ApiRequest(id=1, route=route, body={**NEUTRAL, **prompt, **fields}), LIMITS)


# ---- descriptor and options -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "ok"),
    [
        (spec(), True),
        (spec("pytorch"), False),
        (spec("mlx"), False),
        (spec(model_type="embedding"), True),
        (spec(model_type="rerank"), True),
        (spec(model_type="video"), False),
    ],
)
def test_match(wanted: ModelSpec, ok: bool) -> None:
    support = plugin.match(wanted, HOST)
    assert support.ok is ok
    assert ok or support.reason


def test_options_are_typed_and_named() -> None:
    assert info().check_options({"context-length": "512", "flash_attention": "true", "cache_type_k": "q8_0"}) == {
        "context_length": 512,
        "flash_attention": True,
        "cache_type_k": "q8_0",
    }
    with pytest.raises(UnknownOption, match=r"no option 'frobnicate'; its options: batch_size, cache_prompt, cache_type_k"):
        info().check_options({"frobnicate": 1})
    with pytest.raises(UnknownOption, match="option 'slots'"):
        info().check_options({"slots": 0})
    with pytest.raises(UnknownOption, match="option 'cache_type_v'"):
        info().check_options({"cache_type_v": "q9"})


def test_options_have_other_names() -> None:
    assert info().check_options({"n_ctx": 256, "n-parallel": 4, "flash_attn": False}) == {
        "context_length": 256,
        "slots": 4,
        "flash_attention": False,
    }
    assert set(ALIASES.values()) <= set(LlamaCppOptions.__struct_fields__)
    assert not set(ALIASES) & set(LlamaCppOptions.__struct_fields__)
    with pytest.raises(UnknownOption, match="given twice, as 256 and 512"):
        info().check_options({"n_ctx": 256, "context_length": 512})


def test_manifest_covers_both_routes() -> None:
    fields = plugin.MANIFEST.endpoints
    assert set(fields) == {CHAT, COMPLETIONS}
    assert fields[CHAT]["tools"].state == "yes"
    assert fields[COMPLETIONS]["echo"].state == "no"
    assert "tools" not in fields[COMPLETIONS]


# ---- header and sizes -----------------------------------------------------------------------------


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(pairs: dict[str, Any], version: int = 3) -> bytes:
    """A GGUF file without tensors."""
    data = b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs))
    for key, value in pairs.items():
        data += _text(key)
        if isinstance(value, str):
            data += struct.pack("<I", 8) + _text(value)
        elif isinstance(value, list) and isinstance(value[0], str):
            data += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        elif isinstance(value, list):
            data += struct.pack("<IIQ", 9, 4, len(value)) + struct.pack(f"<{len(value)}I", *value)
        elif isinstance(value, float):
            data += struct.pack("<If", 6, value)
        else:
            data += struct.pack("<II", 4, value)
    return data


PAIRS: dict[str, Any] = {
    "general.architecture": "qwen2",
    "qwen2.context_length": 1024,
    "qwen2.block_count": 4,
    "qwen2.embedding_length": 128,
    "qwen2.attention.head_count": 4,
    "qwen2.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.ggml.token_type": list(range(5000)),
    "tokenizer.chat_template": "{{ messages }}",
}


def test_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(PAIRS))
    assert read_header(path) == Header(
        architecture="qwen2",
        context_length=1024,
        vocabulary_size=3,
        kv_values=4 * 2 * (32 + 32),
        has_chat_template=True,
        size=path.stat().st_size,
        layers=4,
    )
    path.write_bytes(gguf(PAIRS | {"qwen2.attention.head_count_kv": [2, 0, 2, 0], "qwen2.attention.key_length": 64}))
    assert read_header(path).kv_values == 4 * (64 + 32)
    path.write_bytes(gguf(PAIRS | {"qwen2.attention.head_count": [8, 4, 4, 4], "qwen2.attention.head_count_kv": 1}))
    assert read_header(path).kv_values == 4 * 1 * (16 + 16)
    path.write_bytes(gguf({"general.architecture": "qwen2"}))
    assert read_header(path) == Header(
        architecture="qwen2", context_length=0, vocabulary_size=0, kv_values=0, has_chat_template=False, size=path.stat().st_size
    )


def test_sampling_that_a_file_recommends(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(PAIRS | {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.mirostat": 2}))
    assert read_header(path).sampling == {"temperature": 0.6, "top_k": 20}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "doesn't begin with 'GGUF'"),
        (gguf(PAIRS, version=9), "GGUF version 9"),
        (gguf(PAIRS)[:200], "cut short"),
        (gguf({"general.name": "x"}), "architecture"),
    ],
)
def test_broken_header(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=reason) as caught:
        read_header(path)
    assert str(path) in caught.value.message


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        read_header(tmp_path / "m.gguf")


# ---- translation ----------------------------------------------------------------------------------


def test_sampling_is_applied_in_xis_order() -> None:
    body = translated(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.5, max_tokens=7)
    assert body["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    assert (body["temperature"], body["top_k"], body["top_p"], body["min_p"]) == (0.5, 3, 0.9, 0.1)
    assert (body["repeat_penalty"], body["presence_penalty"], body["repeat_last_n"]) == (1.2, 0.5, 1024)
    assert body["max_tokens"] == 7
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["post_sampling_probs"] is False


def test_temperature_zero_is_greedy() -> None:
    body = translated(temperature=0.0, top_k=50, top_p=0.1, min_p=1.0)
    assert (body["samplers"], body["top_k"], body["top_p"], body["min_p"]) == (["penalties", "top_k"], 1, 1.0, 0.0)


def test_answers_end_with_the_context() -> None:
    assert translated()["max_tokens"] == 1024
    assert translated(top_k=2**40)["top_k"] == 2048


def test_seeds_fit_32_bits_and_never_mean_random() -> None:
    seeds = [0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63), 0xFFFFFFFF]
    folded = [translated(seed=seed)["seed"] for seed in seeds]
    assert all(0 <= seed < 0xFFFFFFFF for seed in folded)
    assert folded[:2] == [0, 1]
    assert "seed" not in translated()


@pytest.mark.parametrize("first", [-3, 2**32 - 8, -(2**32) - 3, 2**63 - 20])
def test_seeds_of_the_choices_of_one_request_differ(first: int) -> None:
    folded = {translated(seed=first + choice)["seed"] for choice in range(6)}
    assert len(folded) == 6


def test_seeded_requests_never_reuse_the_cache() -> None:
    assert translated()["cache_prompt"] is True
    assert translated(seed=5)["cache_prompt"] is False
    request = ApiRequest(id=1, route=COMPLETIONS, body={**NEUTRAL, "prompt": "hi"})
    assert to_llama(request, LIMITS, cache_prompt=False)["cache_prompt"] is False


def test_biases_are_ids() -> None:
    assert translated(logit_bias={"17": -100.0, "5": 2.5})["logit_bias"] == [[17, -100.0], [5, 2.5]]
    for token in ("2048", "-1"):
        with pytest.raises(InvalidRequest, match="ids are below 2048") as caught:
            translated(logit_bias={token: 1.0})
        assert caught.value.param == "logit_bias"


def test_logprobs_always_ask_for_an_alternative() -> None:
    assert translated(CHAT, logprobs=True, top_logprobs=0)["top_logprobs"] == 1
    assert translated(CHAT, logprobs=True, top_logprobs=5)["top_logprobs"] == 5
    assert "logprobs" not in translated(CHAT)
    assert translated(logprobs=0)["logprobs"] == 1
    assert translated(logprobs=3)["logprobs"] == 3


def test_prompts() -> None:
    assert translated(prompt=[1, 2])["prompt"] == [1, 2]
    with pytest.raises(InvalidRequest, match="prompt is empty"):
        translated(prompt="")
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert translated(CHAT, messages=messages)["messages"] == [{"role": "system", "content": "Be brief."}, messages[1]]


def strict(**properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object", "properties": properties}}}


def test_strict_tools_and_one_call() -> None:
    kept = {"pattern": {"type": "integer", "minimum": 1}, "a": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]}}
    [tool] = translated(CHAT, tools=[strict(**kept)])["tools"]
    assert tool["function"]["parameters"] == {"type": "object", "properties": kept, "required": [], "additionalProperties": False}
    [tool] = translated(CHAT, tools=[strict(day={"type": "string", "format": "date"})])["tools"]
    assert tool["function"]["parameters"]["properties"] == {"day": {"type": "string", "pattern": PATTERNS["date"]}}, "not llama.cpp's own"
    for name, lost in (
        ("pattern", {"type": "array", "items": {"type": "string", "pattern": "a"}}),
        ("minimum", {"anyOf": [{"type": "number", "minimum": 1}]}),
        ("oneOf", {"oneOf": [{"type": "null"}, {"type": "string"}]}),
        ("not", {"not": {}}),
    ):
        with pytest.raises(InvalidRequest, match=name) as caught:
            translated(CHAT, tools=[strict(), strict(a=lost)])
        assert caught.value.param == "tools[1].function.parameters"
        loose = strict(a=lost)
        del loose["function"]["strict"]
        assert translated(CHAT, tools=[loose])["tools"] == [loose], "as llama.cpp reads it"
    assert translated(CHAT, tools=[strict()])["parallel_tool_calls"] is True
    assert translated(CHAT, tools=[strict()], parallel_tool_calls=False)["parallel_tool_calls"] is False


def test_tools() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("get_time", "get_weather")]
    assert translated(CHAT, tools=tools)["tool_choice"] == "auto"
    assert translated(CHAT, tools=tools, tool_choice="required")["tools"] == tools
    named = translated(CHAT, tools=tools, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    assert (named["tools"], named["tool_choice"]) == ([tools[1]], "required")
    assert "tools" not in translated(CHAT, tools=tools, tool_choice="none")
    with pytest.raises(UnsupportedField) as caught:
        translated(CHAT, tools=tools, logprobs=True, top_logprobs=1)
    assert caught.value.param == "logprobs"
    assert "tools" not in translated(CHAT, tools=tools, tool_choice="none", logprobs=True, top_logprobs=1)
    assert "tools" not in translated(CHAT)


def test_refusals() -> None:
    long = {"code": 400, "message": "…", "type": "exceed_context_size_error", "n_prompt_tokens": 5003, "n_ctx": 1024}
    found = refusal(json.dumps({"error": long}), CHAT)
    assert (found.status, found.param, found.code) == (400, "messages", "context_length_exceeded")
    assert "5003 tokens" in found.message
    assert "1024" in found.message
    assert refusal('{"error":{"code":400,"message":"Prompt contains invalid tokens"}}', COMPLETIONS).param == "prompt"
    assert refusal('{"error":{"code":400,"message":"no"}}', CHAT).status == 400
    assert refusal('{"error":{"code":500,"message":"Compute error."}}', CHAT).status == 500
    assert refusal('{"error":{}}', CHAT).status == 500
    tools = refusal_of(ValueError("Automatic parser generation failed: JSON schema error at #: unrecognized type foo"), CHAT)
    assert (tools.status, tools.param) == (400, "tools")
    template = refusal_of(RuntimeError("Jinja Exception: roles must alternate"), CHAT)
    assert (template.status, template.param) == (400, "messages")
    arguments = refusal_of(RuntimeError("Failed to parse tool call arguments as JSON: [json.exception…"), CHAT)
    assert (arguments.status, arguments.param) == (400, "messages")
    grammar = refusal('{"error":{"code":400,"message":"Failed to initialize samplers: failed to parse grammar"}}', CHAT)
    assert (grammar.status, grammar.param) == (400, "tools")
    left = refusal('{"error":{"code":500,"message":"Unexpected empty grammar stack after accepting piece: x"}}', CHAT, "response_format")
    assert (left.status, left.param, "logit_bias" in left.message) == (400, "response_format", True)
    assert refusal_of(RecursionError("maximum recursion depth exceeded"), CHAT).status == 400
    assert refusal_of(RuntimeError("bad alloc"), CHAT).status == 500


# ---- answers with log-probabilities ---------------------------------------------------------------


def piece(text: str, chat: bool, number: int, finish: str | None = None) -> str:
    entries = {"content": [{"id": number, "token": text, "bytes": list(text.encode()), "logprob": -1.0, "top_logprobs": []}]}
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None if finish else entries}
    choice |= {"delta": {"content": text} if not finish else {}} if chat else {"text": text}
    return json.dumps({"choices": [choice], "timings": {"cache_n": 8, "prompt_n": 12, "predicted_n": number}})


def shown(events: list[str], chat: bool) -> tuple[str, list[int]]:
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    text = "".join(choice["delta"].get("content", "") if chat else choice["text"] for choice in choices)
    return text, [entry["id"] for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]


@pytest.mark.parametrize("chat", [True, False])
def test_stop_string_over_several_tokens(chat: bool) -> None:
    stream, events = StopStream(["= 6", "= 5"], chat=chat), []
    for number, text in enumerate(["3", " ", "= ", "7", " =", " ", "5"], 1):
        event, ended = stream.feed(piece(text, chat, number))
        events.append(event)
    assert ended
    assert shown(events, chat) == ("3 = 7 ", [1, 2, 3, 4, 5]), "tokens that show nothing have no entry"
    last = json.loads(events[-1])
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"] == {"completion_tokens": 7, "prompt_tokens": 20, "total_tokens": 27}


@pytest.mark.parametrize("chat", [True, False])
def test_held_text_comes_out_at_the_end(chat: bool) -> None:
    stream = StopStream(["= 6"], chat=chat)
    pieces = [piece("3", chat, 1), piece(" = ", chat, 2), piece("", chat, 2, "length")]
    fed = [stream.feed(data) for data in pieces]
    assert [ended for _, ended in fed] == [False, False, False]
    assert shown([event for event, _ in fed], chat) == ("3 = ", [1, 2])


def thought(number: int, finish: str | None = None, **delta: str) -> str:
    event = json.loads(piece("", True, number, finish))
    event["choices"][0]["delta"] = delta
    return json.dumps(event)


def told(stream: StopStream, *pieces: str) -> tuple[str, str, list[int], bool]:
    """Reasoning, content, numbers of the entries, and whether a stop string ended the answer."""
    fed = [stream.feed(data) for data in pieces]
    deltas = [json.loads(event)["choices"][0]["delta"] for event, _ in fed]
    reasoning, content = ("".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning_content", "content"))
    return reasoning, content, shown([event for event, _ in fed], True)[1], fed[-1][1]


def test_stop_string_in_the_reasoning() -> None:
    first = [thought(1, reasoning_content="So "), thought(2, reasoning_content="sto")]
    assert told(StopStream(["stop"], chat=True), *first, thought(3, reasoning_content="p it")) == ("So ", "", [1], True)
    stream = StopStream(["stop"], chat=True)
    assert told(stream, *first, thought(3, content="p it"), thought(4, content=" stop")) == ("So sto", "p it ", [1, 2, 3, 4], True)


def test_stop_string_in_the_first_of_two_events_of_a_token() -> None:
    first = json.loads(thought(1, reasoning_content="So stop"))
    del first["timings"]
    stream = StopStream(["stop"], chat=True)
    assert stream.feed(json.dumps(first))[1] is False
    assert told(stream, thought(1, content="Yes"))[1:] == ("", [], True)


def test_entries_of_an_answer_that_ends_within_its_reasoning() -> None:
    pieces = [thought(1), thought(2, reasoning_content="So st"), thought(2, "length")]
    assert told(StopStream(["stop"], chat=True), *pieces) == ("So st", "", [1, 2], False)
    assert told(StopStream([], chat=True), thought(1), thought(1, "length")) == ("", "", [1], False), "of a mark that has no text"


def test_usage_event_passes_unread() -> None:
    event = '{"choices":[],"usage":{"completion_tokens":9}}'
    assert StopStream(["x"], chat=True).feed(event) == (event, False)


# ---- what runs around the library -----------------------------------------------------------------


def test_call_threads_run_up_to_their_limit() -> None:
    threads, gate, ran = CallThreads(2, "test"), threading.Event(), threading.Semaphore(0)

    def call() -> None:
        ran.release()
        gate.wait(10)

    for _ in range(3):
        threads.start(call)
    assert ran.acquire(timeout=10)
    assert ran.acquire(timeout=10)
    assert not ran.acquire(timeout=0.05), "the third waits"
    gate.set()
    assert ran.acquire(timeout=10)
    assert threads.close(10)


def test_the_threads_share_the_time_to_end() -> None:
    threads, began = CallThreads(4, "test"), time.monotonic()
    for place in range(4):
        threads.start(partial(time.sleep, 0.3 * (place + 1)))
    assert not threads.close(0.4), "the second still runs then"
    assert time.monotonic() - began < 1.0
    assert threads.close(10)


def test_a_models_special_stops_get_a_text_in_raw_completions() -> None:
    limits = Limits(context_length=1024, vocabulary_size=2048, stops=("<end>",))
    asked = ApiRequest(id=1, route=COMPLETIONS, body={**NEUTRAL, "prompt": "Hi", "stop": ["x", "<end>"]})
    assert (to_llama(asked, limits)["stop"], to_llama(asked, limits)["preserved_tokens"]) == (["x", "<end>"], ["<end>"])
    ignoring = ApiRequest(id=1, route=COMPLETIONS, body={**NEUTRAL, "prompt": "Hi", "stop": ["x"], "ignore_eos": True})
    assert "preserved_tokens" not in to_llama(ignoring, limits)
    chat = ApiRequest(id=1, route=CHAT, body={**NEUTRAL, "messages": [], "stop": ["<end>"]})
    assert "preserved_tokens" not in to_llama(chat, limits), "chats have no such field"
