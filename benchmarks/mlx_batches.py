"""mlx-lm's `BatchGenerator` by a bare loop. It imports nothing that the library's environment doesn't have."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.peers import SLOTS


class BareMlx:
    """The library's own continuous batching with its own settings: all prompts put in at once, steps until the last one ends. Greedy."""

    def __init__(self, model: Path) -> None:
        from mlx_lm.generate import BatchGenerator
        from mlx_lm.utils import load_model

        library, _ = load_model(model)
        self._generator: Any = BatchGenerator(library, completion_batch_size=SLOTS, prefill_batch_size=SLOTS)

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds for these prompts with so many tokens each."""
        began = time.perf_counter()
        self._generator.insert(prompts, max_tokens=[tokens] * len(prompts))
        left, made = len(prompts), 0
        while left:
            _, answers = self._generator.next()
            made += len(answers)
            left -= sum(answer.finish_reason is not None for answer in answers)
        seconds = time.perf_counter() - began
        if made != len(prompts) * tokens:
            raise RuntimeError(f"{made} tokens instead of {len(prompts) * tokens}")
        return seconds
