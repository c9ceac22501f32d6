"""`ParityKit`: `EngineKit` with a reference. Every engine that runs the demo model xi-tiny passes this one body and so answers alike.

The reference comes by two fixtures: `expected` (prompts, greedy answers, token ids and tool calls of xi-tiny) and `numbers`
(log-probabilities of its answers); `training/xi_tiny` has the scripts that wrote both with transformers in f32.
The checks are in `parity_*.py`, by topic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from xi_core.testing.engine_kit import EngineKit
from xi_core.testing.harness import Harness
from xi_core.testing.parity_answers import AnswerParity
from xi_core.testing.parity_base import COMPLETION_PROMPTS
from xi_core.testing.parity_sampling import SamplingParity
from xi_core.testing.parity_tools import ToolParity
from xi_core.wire.frames import Data, End, Frame, Open

__all__ = ["COMPLETION_PROMPTS", "ParityKit"]


class ParityKit(AnswerParity, SamplingParity, ToolParity, EngineKit):
    """Set `plugin` and `plan`, one that runs xi-tiny with its tool parser; `route` and `prompts` for completions."""

    runs = 100
    chunked: ClassVar[dict[str, Any]]
    """Options under which prompts are read in parts of at most `chunk` tokens."""
    chunk: ClassVar[int] = 32

    @pytest.fixture(scope="class")
    @classmethod
    def in_chunks(cls) -> Iterator[Harness]:
        with Harness(replace(cls.plan, options={**cls.plan.options, **cls.chunked})) as harness:
            yield harness

    def test_a_long_prompt_stalls_nobody(self, in_chunks: Harness) -> None:
        """While it is read, each request that runs gets about a token per part."""
        parts = 600 // self.chunk
        fields: dict[str, Any] = {"temperature": 0, "stream": True, "ignore_eos": True}
        short = [self.start(in_chunks, self.prompts[-1], max_tokens=400, **fields) for _ in range(3)]
        for call in short:
            assert isinstance(call.first(), Open)
            assert isinstance(call.first(), Data)
        trace: list[Frame] = []
        in_chunks.trace = trace
        long = self.start(in_chunks, self.question("the " * 600), max_tokens=2, **fields)
        assert isinstance(long.first(), Open)
        before = trace[: next(place for place, frame in enumerate(trace) if frame.id == long.id)]
        for call in short:
            assert not any(isinstance(frame, End) for frame in before), "they run longer than the prompt takes to read"
            # Engines that tell only at the end how many tokens there were send an event for each.
            tokens = sum(frame.tokens or 1 for frame in before if isinstance(frame, Data) and frame.id == call.id)
            assert tokens >= parts // 2, f"{tokens} tokens while {parts} parts were read"
            call.abort()
        while not isinstance(frame := long.first(), End):
            pass
        assert frame.finish == "length"
