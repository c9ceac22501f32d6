"""Every greedy answer of xi-tiny, through the API: both engines, alone and 32 at once, streamed and not."""

import asyncio
import json
from typing import Any

import openai
import pytest

from xi_core.testing.server import RunningServer

BOTH = pytest.mark.parametrize("uid", ["xi-tiny", "xi-tiny-torch"])


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.endpoint}/v1", api_key="none", max_retries=0, timeout=60)


@BOTH
def test_alone(client: openai.OpenAI, uid: str, expected: dict[str, Any]) -> None:
    with client:
        for fact in expected["chat"]:
            answer = client.chat.completions.create(model=uid, messages=[{"role": "user", "content": fact["prompt"]}], temperature=0)
            assert answer.choices[0].message.content == fact["answer"]
            assert answer.choices[0].finish_reason == "stop"
            assert answer.model == uid
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == len(fact["prompt_ids"])
            assert answer.usage.completion_tokens == len(fact["answer_ids"])


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_32_at_once(server: RunningServer, uid: str, stream: bool, expected: dict[str, Any]) -> None:
    gate = asyncio.Semaphore(32)
    async with openai.AsyncOpenAI(base_url=f"{server.endpoint}/v1", api_key="none", max_retries=0, timeout=60) as client:

        async def ask(prompt: str) -> str:
            messages: Any = [{"role": "user", "content": prompt}]
            async with gate:
                if not stream:
                    whole = await client.chat.completions.create(model=uid, messages=messages, temperature=0)
                    return whole.choices[0].message.content or ""
                chunks = await client.chat.completions.create(model=uid, messages=messages, temperature=0, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        answers = await asyncio.gather(*(ask(fact["prompt"]) for fact in expected["chat"]))
    assert answers == [fact["answer"] for fact in expected["chat"]]


@BOTH
def test_completions_of_token_ids(client: openai.OpenAI, uid: str, expected: dict[str, Any]) -> None:
    with client:
        for fact in expected["chat"][:20]:
            answer = client.completions.create(model=uid, prompt=fact["prompt_ids"], temperature=0, max_tokens=200)
            assert answer.choices[0].text == fact["answer"]


@BOTH
def test_completions_of_several_prompts(client: openai.OpenAI, uid: str, expected: dict[str, Any]) -> None:
    facts = expected["chat"][:40]
    fields: dict[str, Any] = {"model": uid, "prompt": [fact["prompt_ids"] for fact in facts], "temperature": 0, "max_tokens": 200, "n": 2}
    wanted = [fact["answer"] for fact in facts for _ in range(2)]
    with client:
        whole = client.completions.create(**fields)
        assert [choice.index for choice in whole.choices] == list(range(80))
        assert [choice.text for choice in whole.choices] == wanted
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == sum(len(fact["prompt_ids"]) for fact in facts)
        assert whole.usage.completion_tokens == 2 * sum(len(fact["answer_ids"]) for fact in facts)
        texts = [""] * 80
        for chunk in client.completions.create(**fields, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == wanted
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model=uid, prompt=["Hi", "long " * 5000], max_tokens=1)
        assert (refused.value.param, refused.value.code) == ("prompt[1]", "context_length_exceeded")


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(client: openai.OpenAI, uid: str, stream: bool, expected: dict[str, Any]) -> None:
    with client:
        for case in expected["tools"][:12]:
            tools = [expected["tool_definitions"][name] for name in case["tools"]]
            request: dict[str, Any] = {
                "model": uid,
                "messages": [{"role": "user", "content": case["prompt"]}],
                "tools": tools,
                "temperature": 0,
            }
            if stream:
                name, arguments, finish = "", "", None
                for chunk in client.chat.completions.create(**request, stream=True):
                    finish = chunk.choices[0].finish_reason or finish
                    for call in chunk.choices[0].delta.tool_calls or []:
                        name += call.function.name or ""
                        arguments += call.function.arguments or ""
            else:
                choice = client.chat.completions.create(**request).choices[0]
                finish, (call,) = choice.finish_reason, choice.message.tool_calls
                name, arguments = call.function.name, call.function.arguments
            assert finish == "tool_calls"
            assert [{"name": name, "arguments": json.loads(arguments)}] == case["calls"]


@BOTH
@pytest.mark.parametrize("named", [False, True])
def test_a_tool_that_must_be_called(client: openai.OpenAI, uid: str, named: bool, expected: dict[str, Any]) -> None:
    with client:
        for case in expected["tools"][:6]:
            (called,) = case["calls"]
            choice: Any = {"type": "function", "function": {"name": called["name"]}} if named else "required"
            answer = client.chat.completions.create(
                model=uid,
                messages=[{"role": "user", "content": case["prompt"]}],
                tools=[expected["tool_definitions"][name] for name in case["tools"]],
                tool_choice=choice,
                temperature=0,
            )
            (call,) = answer.choices[0].message.tool_calls or []
            assert answer.choices[0].finish_reason == "tool_calls"
            assert {"name": call.function.name, "arguments": json.loads(call.function.arguments)} == called


@BOTH
def test_the_answer_after_a_tool_has_spoken(client: openai.OpenAI, uid: str, expected: dict[str, Any]) -> None:
    tool = expected["tool_definitions"]["get_weather"]
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    with client:
        first = client.chat.completions.create(model=uid, messages=messages, tools=[tool], temperature=0)
        call = first.choices[0].message.tool_calls[0]
        messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny, 20 degrees"}]
        second = client.chat.completions.create(model=uid, messages=messages, tools=[tool], temperature=0)
    assert "sunny" in (second.choices[0].message.content or "")
    assert second.choices[0].finish_reason == "stop"
