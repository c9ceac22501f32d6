"""`Delta`: what a step adds to one choice. Every engine's output passes through it, and every answer is built from it."""

from __future__ import annotations

from msgspec import Struct, field

from xi_core.api.openai import TokenLogprob
from xi_core.serving.parser import ToolCallDelta


class Delta(Struct, kw_only=True):
    """Text, reasoning, tool-call pieces and log-probabilities of one choice; `finish` is set on its last delta.

    `tokens` counts what the engine sampled for it, with tokens whose text is held back or hidden.
    """

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    """Where the request asked for them: those since the choice's last delta that showed anything."""
    finish: str | None = None
    tokens: int = 0

    def shows(self) -> bool:
        """Whether a client would see anything of it."""
        return bool(self.text or self.reasoning or self.tool_calls or self.logprobs or self.finish)
