"""The kit on the llama.cpp engine, with xi-tiny."""

from pathlib import Path
from typing import Any

import pytest

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
