"""What all parts of `EngineKit` stand on: the engine under test, and the requests that the checks make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from xi_core.serving.request import CHAT, COMPLETIONS
from xi_core.testing.harness import Answer, Call, Harness
from xi_core.wire.plan import LaunchPlan


class KitBase:
    """Set `plugin` and `plan`; `prompts` are requests in greedy form that the model answers in more than four tokens."""

    plugin: ClassVar[str]
    plan: ClassVar[LaunchPlan]
    prompts: ClassVar[tuple[str, ...]] = ("Hello!", "What is the capital of France?", "Tell me a story.")
    route: ClassVar[str] = CHAT

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Iterator[Harness]:
        with Harness(cls.plan) as harness:
            yield harness

    def ask(self, harness: Harness, prompt: str, **fields: Any) -> Answer:
        return self.start(harness, prompt, **fields).answer()

    def start(self, harness: Harness, prompt: str, **fields: Any) -> Call:
        if self.route == CHAT:
            return harness.start_chat(prompt, **fields)
        return harness.submit(COMPLETIONS, {"prompt": prompt, "max_tokens": 48, **fields})

    def with_logprobs(self, alternatives: int) -> dict[str, Any]:
        """The fields that ask for log-probabilities, in the route's own form."""
        return {"logprobs": True, "top_logprobs": alternatives} if self.route == CHAT else {"logprobs": alternatives}

    def claims(self, harness: Harness, name: str) -> bool:
        """Whether the loaded model's manifest claims a field, wholly or within limits."""
        cell = harness.model.manifest.endpoints.get(self.route, {}).get(name)
        return cell is not None and cell.state != "no"

    def supports(self, harness: Harness, *fields: str) -> None:
        """Skip a check of fields that the engine's manifest says it can't honour."""
        missing = [name for name in fields if not self.claims(harness, name)]
        if missing:
            pytest.skip(f"the manifest does not claim {', '.join(missing)} on {self.route}")
