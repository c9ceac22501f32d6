"""The kit on the llama.cpp engine, with xi-tiny."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import Harness, plan_for

pytest.importorskip("xllamacpp", reason="the llama.cpp engine's library is not installed")
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/xi-tiny-f16.gguf"


class TestLlamaCpp(EngineKit):
    plugin = "xi_plugins.engines.llama_cpp.plugin"
    plan = plan_for("xi_plugins.engines.llama_cpp.engine:LlamaCppEngine", str(XI_TINY), "ggufv2")

    def test_expected_answers(self, harness: Harness, expected: dict[str, Any]) -> None:
        calls = [(fact, harness.start_chat(fact["prompt"], temperature=0)) for fact in expected["chat"]]
        for fact, call in calls:
            answer = call.answer()
            assert answer.text == fact["answer"]
            assert answer.usage["prompt_tokens"] == len(fact["prompt_ids"])
            assert answer.usage["completion_tokens"] == len(fact["answer_ids"])


class TestLlamaCppCompletions(EngineKit):
    plugin = TestLlamaCpp.plugin
    plan = TestLlamaCpp.plan
    route = COMPLETIONS
    prompts = tuple(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in EngineKit.prompts)


def test_thinking_is_switched_by_launch_and_by_request() -> None:
    """llama.cpp reads the variable itself, beside giving it to the template."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %} Think, think, think.{% endif %}"
    sizes = {}
    for launch in (True, False):
        with Harness(replace(TestLlamaCpp.plan, chat_template=template, enable_thinking=launch)) as harness:
            for request in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                answer = harness.chat("Hi", max_tokens=1, temperature=0, chat_template_kwargs=request)
                sizes[launch, request.get("enable_thinking")] = answer.usage["prompt_tokens"]
    assert sizes[True, None] == sizes[True, True] == sizes[False, True]
    assert sizes[False, None] == sizes[False, False] == sizes[True, False]
    assert sizes[False, None] < sizes[True, None]
