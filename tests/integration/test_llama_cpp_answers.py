"""Answers of the engine `llama.cpp`: what is particular to it. The conformance kit covers the rest."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from xi_plugins.engines.llama_cpp.translate import CHAT, COMPLETIONS

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.engine("llama.cpp"), pytest.mark.timeout(60)]

from llama_cpp_loaded import EXPECTED, Loaded, answer_to, prompt_of, question  # noqa: E402


def test_expected_answers_alone(loaded: Loaded) -> None:
    for entry in EXPECTED["chat"]:
        answer = loaded.chat(entry["prompt"], max_tokens=200)
        assert answer.text == entry["answer"]
        assert answer.finish == "stop"
        assert answer.usage["prompt_tokens"] == len(entry["prompt_ids"])
        assert answer.usage["completion_tokens"] == len(entry["answer_ids"]), "the end token counts"


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_expected_answers_at_once(loaded: Loaded, route: str) -> None:
    entries = EXPECTED["chat"]
    for first in range(0, len(entries), 32):
        batch = entries[first : first + 32]
        ids = [
            loaded.start(messages=question(entry["prompt"]), max_tokens=200)
            if route == CHAT
            else loaded.start(prompt_of(entry), max_tokens=200)
            for entry in batch
        ]
        loaded.sink.wait(*ids)
        assert [loaded.answer(id).text for id in ids] == [entry["answer"] for entry in batch]


def test_expected_tool_calls(loaded: Loaded) -> None:
    for entry in EXPECTED["tools"]:
        tools = [EXPECTED["tool_definitions"][name] for name in entry["tools"]]
        answer = loaded.chat(entry["prompt"], max_tokens=200, tools=tools)
        assert answer.finish == "tool_calls"
        assert answer.calls[0]["function"]["name"] == entry["calls"][0]["name"]
        assert json.loads("".join(call["function"]["arguments"] for call in answer.calls)) == entry["calls"][0]["arguments"]
        assert answer.usage["completion_tokens"] == len(entry["answer_ids"])


def test_a_named_tool_is_called(loaded: Loaded) -> None:
    tools = list(EXPECTED["tool_definitions"].values())
    choice = {"type": "function", "function": {"name": "get_time"}}
    answer = loaded.chat("What is the weather in Paris?", max_tokens=200, tools=tools, tool_choice=choice)
    assert answer.calls[0]["function"]["name"] == "get_time"


def test_developer_is_the_system(loaded: Loaded) -> None:
    usages = [
        loaded.ask(messages=[{"role": role, "content": "Be brief."}, *question("What is 2 + 3?")], max_tokens=4).usage["prompt_tokens"]
        for role in ("system", "developer")
    ]
    assert usages[0] == usages[1]


def test_an_assistants_last_message_is_not_continued(loaded: Loaded) -> None:
    answer = loaded.ask(messages=[*question("What is 2 + 3?"), {"role": "assistant", "content": "2 +"}], max_tokens=4)
    assert answer.end == "done"
    assert answer.usage["prompt_tokens"] > loaded.chat("What is 2 + 3?", max_tokens=4).usage["prompt_tokens"] + 2


def test_no_progress_events_leak(loaded: Loaded) -> None:
    answer = loaded.ask([5] * 900, max_tokens=2)
    assert not [event for event in answer.events if "prompt_progress" in event]


def test_stop_strings_count_the_token_that_ends(loaded: Loaded) -> None:
    whole = loaded.chat("What is 2 + 3?", max_tokens=32)
    text = whole.text
    stop = text[-3:-1]
    for fields in ({}, {"logprobs": True, "top_logprobs": 0}):
        answer = loaded.chat("What is 2 + 3?", max_tokens=32, stop=["never", stop], **fields)
        assert (answer.text, answer.finish) == (text[: text.index(stop)], "stop")
        assert answer.usage["prompt_tokens"] == whole.usage["prompt_tokens"]
        assert 0 < answer.usage["completion_tokens"] < whole.usage["completion_tokens"]
        if fields:
            assert "".join(entry["token"] for entry in answer.entries).startswith(answer.text), "an entry for every token that shows"


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_logprobs_are_of_the_whole_distribution(loaded: Loaded, temperature: float) -> None:
    vocabulary = 1100
    ids = EXPECTED["chat"][0]["prompt_ids"]
    answer = loaded.ask(ids, max_tokens=6, logprobs=vocabulary, temperature=temperature, seed=4, top_k=5)
    assert answer.entries
    for entry in answer.entries:
        top = {one["id"]: one["logprob"] for one in entry["top_logprobs"]}
        assert math.isclose(sum(map(math.exp, top.values())), 1.0, abs_tol=1e-3), "not cut by top_k"
        assert math.isclose(top[entry["id"]], entry["logprob"], abs_tol=1e-6)


def test_the_end_token_has_no_entry(loaded: Loaded) -> None:
    entry = EXPECTED["chat"][0]
    for answer in (
        loaded.ask(prompt_of(entry), max_tokens=200, logprobs=0),
        loaded.chat(entry["prompt"], max_tokens=200, logprobs=True, top_logprobs=0),
    ):
        assert answer.finish == "stop"
        assert len(answer.entries) == answer.usage["completion_tokens"] - 1
        assert "".join(one["token"] for one in answer.entries) == answer.text


def test_seeds_repeat_alone(loaded: Loaded) -> None:
    """Beside others they may not, which the manifest says; but each of those answers is whole."""
    fields: dict[str, Any] = {"messages": question("Tell me a story."), "max_tokens": 24, "temperature": 1.8, "ignore_eos": True}
    alone = [loaded.ask(**fields, seed=seed).text for seed in range(4)]
    assert len(set(alone)) > 1
    assert [loaded.ask(**fields, seed=seed).text for seed in range(4)] == alone
    ids = [loaded.start(**fields, seed=number % 4) for number in range(32)]
    loaded.sink.wait(*ids)
    assert {loaded.answer(id).usage["completion_tokens"] for id in ids} == {24}


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_filters_leave_the_likeliest(loaded: Loaded, fields: dict[str, Any]) -> None:
    assert loaded.chat("What is 2 + 3?", max_tokens=32, temperature=2.0, **fields).text == answer_to("What is 2 + 3?")


def test_penalties_and_bias_change_the_answer(loaded: Loaded) -> None:
    expected = answer_to("What is 2 + 3?")
    first = loaded.chat("What is 2 + 3?", max_tokens=1, logprobs=True, top_logprobs=1).entries[0]["id"]
    assert loaded.chat("What is 2 + 3?", max_tokens=32, repetition_penalty=10.0).text != expected
    banned = loaded.chat("What is 2 + 3?", max_tokens=1, logprobs=True, top_logprobs=1, logit_bias={str(first): -100.0})
    assert banned.entries[0]["id"] != first
    assert banned.entries[0]["top_logprobs"][0]["id"] == first, "log-probabilities are the model's own"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [5, 10**8]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "logit_bias": {"99999999": 1.0}}, "logit_bias"),
        ({"messages": question("x"), "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "foo"}}}]}, "tools"),
        (
            {
                "messages": question("x"),
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "array", "items": {}, "minItems": 100_000}}}
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"messages": question("long " * 2000)}, "messages"),
        (
            {
                "messages": [
                    *question("x"),
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "not JSON"}}],
                    },
                ]
            },
            "messages",
        ),
    ],
)
def test_bad_requests_name_the_field(loaded: Loaded, fields: dict[str, Any], param: str) -> None:
    answer = loaded.ask(max_tokens=4, **fields)
    assert answer.events == []
    assert (answer.end[0], answer.end[2]) == (400, param)
    assert loaded.chat("What is 2 + 3?", max_tokens=32).text == answer_to("What is 2 + 3?"), "others go on"
