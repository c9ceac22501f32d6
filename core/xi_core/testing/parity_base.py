"""What all parts of `ParityKit` stand on: the form of questions to xi-tiny, and seeds."""

from __future__ import annotations

from typing import Any

from xi_core.serving.request import CHAT
from xi_core.testing.harness import Harness
from xi_core.testing.kit_base import KitBase

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""xi-tiny's chat template, for one question."""
COMPLETION_PROMPTS = tuple(TURN.format(prompt) for prompt in KitBase.prompts)
"""`prompts` of a class whose `route` is completions."""


class ParityBase(KitBase):
    """Questions to xi-tiny, in the form of the route."""

    def question(self, prompt: str) -> str:
        """A question in the route's form."""
        return prompt if self.route == CHAT else TURN.format(prompt)

    def seeded(self, harness: Harness, seed: int) -> dict[str, Any]:
        """A seed, where the engine takes one."""
        return {"seed": seed} if self.claims(harness, "seed") else {}
