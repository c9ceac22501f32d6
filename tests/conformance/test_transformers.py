"""The kit on the transformers engine, with xi-tiny."""

from pathlib import Path
from typing import Any

import pytest

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import Harness, plan_for

pytest.importorskip("torch", reason="the transformers engine's library is not installed")
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"


class TestTransformers(EngineKit):
    plugin = "xi_plugins.engines.transformers.plugin"
    plan = plan_for("xi_plugins.engines.transformers.engine:TransformersEngine", str(XI_TINY), "pytorch")

    def test_expected_answers(self, harness: Harness, expected: dict[str, Any]) -> None:
        calls = [(fact, harness.start_chat(fact["prompt"], temperature=0)) for fact in expected["chat"]]
        for fact, call in calls:
            answer = call.answer()
            assert answer.text == fact["answer"]
            assert answer.usage["prompt_tokens"] == len(fact["prompt_ids"])
            assert answer.usage["completion_tokens"] == len(fact["answer_ids"])


class TestTransformersCompletions(EngineKit):
    plugin = TestTransformers.plugin
    plan = TestTransformers.plan
    route = COMPLETIONS
    prompts = tuple(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in EngineKit.prompts)
