"""How long a request that joins a full batch of the transformers engine waits for its first token: in steps, which no other load of the
machine moves, and in time beside what its own prefill and three steps take."""

from __future__ import annotations

import queue
import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.peers import CONTEXT, SLOTS
from benchmarks.random_model import make_endless
from benchmarks.results import Row, at_most, report

RUNNING = SLOTS - 1
PROMPTS = (16, 128, 500)
"""Lengths of the prompt that joins, each within one chunk of prefill."""
MOST_STEPS = 3
Step = tuple[float, set[int]]
"""When a step ended, and whose tokens it gave."""


class Served:
    """An engine under its batcher; steps are noted as they end."""

    def __init__(self, model: Path, threads: int, vocabulary: int) -> None:
        from xi_core.engine.batcher import Batcher
        from xi_core.testing.harness import plan_for
        from xi_plugins.engines.transformers.engine import TransformersEngine

        engine = TransformersEngine()
        path = "xi_plugins.engines.transformers.engine:TransformersEngine"
        options = {"threads": threads, "context_length": CONTEXT, "batch_size": SLOTS}
        engine.load(plan_for(path, str(model), "pytorch", **options), lambda stage, share: None)
        self.steps: queue.SimpleQueue[Step | BaseException] = queue.SimpleQueue()
        self._ids = iter(range(1_000_000))
        self._vocabulary = vocabulary
        self._batcher = Batcher(
            engine, lambda output: self.steps.put((time.perf_counter(), {token.id for token in output.tokens})), self.steps.put
        )
        self._batcher.start()

    def submit(self, length: int, tokens: int) -> int:
        """Start a request with a prompt of its own."""
        from xi_core.engine.base import SamplingParams

        id = next(self._ids)
        choose = random.Random(id)
        prompt = [choose.randrange(self._vocabulary) for _ in range(length)]
        self._batcher.submit(id, prompt, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True))
        return id

    def next(self) -> Step:
        """The next step that ends."""
        step = self.steps.get(timeout=60.0)
        if isinstance(step, BaseException):
            raise step
        return step

    def remove(self, id: int) -> None:
        """End a request."""
        self._batcher.remove(id)

    def stop(self) -> None:
        """End all."""
        self._batcher.stop(10.0)


def _alone(served: Served, length: int) -> float:
    """Seconds of a prefill without anything beside it."""
    began = time.perf_counter()
    served.submit(length, 1)
    return served.next()[0] - began


def _join(served: Served, length: int) -> tuple[int, float, float]:
    """Steps and seconds until the first token of a request that joins, and the median seconds of a step before it came."""
    others = {served.submit(32, CONTEXT - 100) for _ in range(RUNNING)}
    seen: set[int] = set()
    while seen != others:
        seen |= served.next()[1]
    ends = [served.next()[0] for _ in range(12)]
    began = time.perf_counter()
    joined = served.submit(length, 1)
    count, at = 0, 0.0
    while not at:
        ended, ids = served.next()
        count += ended > began  # those that had ended before it came don't count
        at = ended if joined in ids else 0.0
    for id in others:
        served.remove(id)
    last = served.submit(4, 1)
    while last not in served.next()[1]:  # once it answers, the others are out
        pass
    return count, at - began, statistics.median(b - a for a, b in pairwise(ends))


def run(*, quick: bool, save: bool, threads: int | None) -> bool:
    """Measure and report. True when all targets are met."""
    import torch

    threads = threads or max(1, torch.get_num_threads() - 1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="xi-bench-") as directory:
        served = Served(make_endless(Path(directory) / "model", "60 M"), threads, 1000)
        try:
            for length in PROMPTS:
                rows += _rows(served, length, 2 if quick else 5)
        finally:
            served.stop()
    return report("joining", rows, {"model": "random Qwen2, 60 M", "threads": threads, "running": RUNNING}, save=save)


def _rows(served: Served, length: int, repetitions: int) -> list[Row]:
    _alone(served, length)
    found = [(_alone(served, length), *_join(served, length)) for _ in range(repetitions)]
    what = f"a prompt of {length} tokens joins {RUNNING}"
    bound = statistics.median(seconds / (alone + MOST_STEPS * step) for alone, _, seconds, step in found)
    return [
        at_most(what, "steps to the first token, most", max(count for _, count, _, _ in found), MOST_STEPS),
        at_most(what, "of the time of 3 steps + its prefill", bound, 1.0),
    ]
