"""The kit on the MLX engine, with xi-tiny. `make test-engine-mlx` runs it where mlx is installed."""

from pathlib import Path
from typing import Any

import pytest

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import Harness, plan_for

pytest.importorskip("mlx_lm", reason="the mlx engine's library is not installed: make test-engine-mlx")
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
ENGINE = "xi_plugins.engines.mlx.engine:MlxEngine"


class TestMlx(EngineKit):
    plugin = "xi_plugins.engines.mlx.plugin"
    plan = plan_for(ENGINE, str(XI_TINY), "pytorch")

    def test_expected_answers(self, harness: Harness, expected: dict[str, Any]) -> None:
        calls = [(fact, harness.start_chat(fact["prompt"], temperature=0)) for fact in expected["chat"]]
        for fact, call in calls:
            answer = call.answer()
            assert answer.text == fact["answer"]
            assert answer.usage["prompt_tokens"] == len(fact["prompt_ids"])
            assert answer.usage["completion_tokens"] == len(fact["answer_ids"])


class TestMlxCompletions(EngineKit):
    plugin = TestMlx.plugin
    plan = TestMlx.plan
    route = COMPLETIONS
    prompts = tuple(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in EngineKit.prompts)
