"""Messages with tool calls, as chat templates of different families want them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from service_clients import serving

from xi_core.errors import InvalidRequest
from xi_core.serving.answer import call_id
from xi_core.serving.request import CHAT, parse
from xi_core.serving.template import ChatTemplate
from xi_core.serving.tokens import TokenService
from xi_core.testing.fakes import CountingEngine, counting_manifest

ARGUMENTS = '{"city":  "Paris"}'
DEEPSEEK = "{% for c in messages[1].tool_calls %}{{ '```json\n' + c.function.arguments + '\n```' }}{% endfor %}"
QWEN = "{% for c in messages[1].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
MISTRAL = "{% if messages[1].tool_calls[0].id | length != 9 %}{{ raise_exception('nine letters or digits') }}{% endif %}well"
EARLY_DEEPSEEK = "{% if messages[1]['content'] is none %}calls{% else %}text:{{ messages[1]['content'] }}{% endif %}"
LLAMA = "{{ messages[1].content | trim }}<"


async def rendered(source: str, content: str | None = None, arguments: str = ARGUMENTS) -> str:
    call = {"id": call_id(), "type": "function", "function": {"name": "weather", "arguments": arguments}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content, "tool_calls": [call]}]
    job = parse(CHAT, json.dumps({"model": "m", "messages": messages}).encode(), counting_manifest(), "fake", {})
    async with serving(CountingEngine()) as service:
        assert isinstance(service, TokenService)
        service._template = ChatTemplate(source)
        return service._render(job)


async def test_arguments_are_an_object() -> None:
    assert await rendered(QWEN) == '{"city": "Paris"}'


async def test_arguments_are_the_text_that_was_sent_where_a_template_joins_them_to_text() -> None:
    assert await rendered(DEEPSEEK) == f"```json\n{ARGUMENTS}\n```"
    assert await rendered(DEEPSEEK, arguments="") == "```json\n{}\n```"


async def test_a_template_that_takes_neither_is_told_with_its_first_reason() -> None:
    with pytest.raises(InvalidRequest, match="can only concatenate str"):
        await rendered(DEEPSEEK + "{{ raise_exception('no calls, please') }}")


@pytest.mark.parametrize("source", [QWEN, DEEPSEEK])
async def test_arguments_that_are_no_json_are_refused_whatever_the_template_takes(source: str) -> None:
    with pytest.raises(InvalidRequest, match="a tool call's arguments are not valid JSON"):
        await rendered(source, arguments="{Paris")


async def test_xis_own_ids_are_such_as_every_template_takes() -> None:
    assert await rendered(MISTRAL) == "well"


async def test_a_message_without_content_is_told_from_an_empty_one_where_a_template_asks() -> None:
    assert await rendered(EARLY_DEEPSEEK) == "calls"
    assert await rendered(EARLY_DEEPSEEK, content="Let me see.") == "text:Let me see."
    assert await rendered(LLAMA) == "<"
