"""Chats whose text llama.cpp's own parser can't read: the model writes bytes that are no UTF-8. Made to by `logit_bias`."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.engine("llama.cpp"), pytest.mark.timeout(120)]

from llama_cpp_loaded import MODEL, Loaded, question  # noqa: E402

VOCABULARY: dict[str, int] = json.loads((MODEL.parent / "hf" / "vocab.json").read_text("utf-8"))
OPEN = 1022
"""`<tool_call>`."""
INNER, NEVER = VOCABULARY["¹"], VOCABULARY["ü"]
"""The bytes 0xB9, which goes on with a character, and 0xFC, which is in none."""
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_time", "parameters": CITY}}
ASK: dict[str, Any] = {"messages": question("What time is it in Paris?"), "tools": [TOOL]}
OPENS: dict[str, Any] = {**ASK, "frequency_penalty": 2.0, "presence_penalty": 2.0, "logit_bias": {str(OPEN): 100.0, str(INNER): 97.0}}
"""One opening, and then bytes."""
TAGGED = """{% for t in tools or [] %}<tools>{{ t | tojson }}</tools>
{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for c in m.tool_calls or [] %}
<tool_call>
<function={{ c.function.name }}>
{% for k, v in c.function.arguments | items %}<parameter={{ k }}>
{{ v }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Calls as Qwen3-Coder writes them, of which llama.cpp makes JSON."""


@pytest.mark.parametrize("choice", [None, "auto"])
@pytest.mark.parametrize("parallel", [True, False])
def test_text_that_is_no_call_is_content(loaded: Loaded, choice: str | None, parallel: bool) -> None:
    more = {"tool_choice": choice} if choice else {}
    answer = loaded.ask(**OPENS, **more, max_tokens=6, parallel_tool_calls=parallel)
    assert answer.end == "done"
    assert answer.text.startswith("<tool_call>\ufffd")
    assert (answer.finish, answer.calls) == ("length", [])
    assert answer.usage["completion_tokens"] == 6
    assert answer.usage["prompt_tokens"] == loaded.ask(**ASK, max_tokens=1).usage["prompt_tokens"]


def test_a_stop_string_ends_it(loaded: Loaded) -> None:
    ended = {**OPENS, "logit_bias": {**OPENS["logit_bias"], str(VOCABULARY["!"]): 96.0}}
    answer = loaded.ask(**ended, max_tokens=30, stop=["!"])
    assert (answer.end, answer.finish) == ("done", "stop")
    assert answer.text.startswith("<tool_call>\ufffd")
    assert "!" not in answer.text


def test_a_required_call_that_cannot_be_read(loaded: Loaded) -> None:
    answer = loaded.ask(**ASK, max_tokens=60, tool_choice="required", logit_bias={str(NEVER): 100.0})
    assert answer.end == "done"
    assert answer.finish in ("length", "tool_calls")


def test_calls_whose_arguments_cannot_be_written_as_json() -> None:
    """Where llama.cpp writes the JSON itself, a byte in a text is enough. Of wild texts, about one in 30 has one."""
    loaded, most = Loaded(slots=16, chat_template=TAGGED), 60
    fields: dict[str, Any] = {**ASK, "max_tokens": most, "tool_choice": "required", "temperature": 2.0, "presence_penalty": -2.0}
    try:
        ids = [loaded.start(**fields, seed=seed) for seed in range(250)]
        loaded.sink.wait(*ids)
    finally:
        loaded.engine.close(10.0)
    answers = [loaded.answer(id) for id in ids]
    assert {answer.end for answer in answers} == {"done"}
    ended = [answer for answer in answers if answer.finish == "length" and answer.usage["completion_tokens"] < most]
    assert ended, "not cut, and yet not complete"
    for answer in ended:
        assert answer.calls[0]["function"]["name"] == "get_time"
        assert answer.usage["prompt_tokens"] > most


def wild(chance: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "max_tokens": chance.choice([1, 2, 5, 8, 20]),
        "temperature": chance.choice([1.0, 2.0]),
        "frequency_penalty": chance.choice([-2.0, 0.0, 2.0]),
        "presence_penalty": chance.choice([-2.0, 2.0]),
        "ignore_eos": chance.random() < 0.3,
        "stop": chance.choice([[], ["a"]]),
        "logit_bias": {str(token): chance.choice([100.0, 10.0]) for token in (OPEN, chance.choice([INNER, NEVER, VOCABULARY["ä"]]))},
        "tool_choice": chance.choice(["auto", "required", "none"]),
        "parallel_tool_calls": chance.random() < 0.5,
    }
    return fields | ({"seed": chance.randrange(1000)} if chance.random() < 0.5 else {})


def test_nothing_that_a_model_writes_is_a_failure(loaded: Loaded) -> None:
    chance = random.Random(3)
    ids = [loaded.start(**ASK, **wild(chance)) for _ in range(400)]
    loaded.sink.wait(*ids)
    for id in ids:
        answer = loaded.answer(id)
        assert answer.end == "done"
        assert answer.finish in ("stop", "length", "tool_calls")
        assert answer.usage["completion_tokens"] > 0
