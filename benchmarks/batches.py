"""Batches in an engine's own environment, by the bare library or by xi's engine under xi's batcher, in a process that takes orders.

    python -m benchmarks.batches llama-cpp-python|mlx bare|batched --model PATH --threads N

runs batches that it is told of on stdin, line by line, and writes the seconds of each. `make test-engine-NAME` makes the environment.
MLX chooses its threads itself, the same for both.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.peers import CONTEXT, SLOTS, orders

if TYPE_CHECKING:
    from xi_core.engine.base import TokenEngine


class Side(Protocol):
    """What runs batches."""

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds for these prompts with so many tokens each."""


class Batched:
    """xi's engine under xi's batcher, as in a replica, without the serving layer around it."""

    def __init__(self, engine: TokenEngine, model: Path, format: str, **options: Any) -> None:
        from xi_core.engine.batcher import Batcher
        from xi_core.testing.harness import plan_for

        engine.load(plan_for("", str(model), format, **options), lambda stage, share: None)
        self._finished = threading.Semaphore(0)
        self._made = self._submitted = 0
        self._failure: BaseException | None = None
        self._batcher = Batcher(engine, self._take, self._fail, interval=0.003)
        self._batcher.start()

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds for these prompts with so many tokens each."""
        from xi_core.engine.base import SamplingParams

        began, before = time.perf_counter(), self._made
        for prompt in prompts:
            self._submitted += 1
            self._batcher.submit(self._submitted, prompt, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True))
        for _ in prompts:
            self._finished.acquire()
        seconds = time.perf_counter() - began
        if self._failure or self._made - before != len(prompts) * tokens:
            raise RuntimeError(f"{self._made - before} tokens instead of {len(prompts) * tokens}") from self._failure
        return seconds

    def _take(self, output: Any) -> None:
        self._made += len(output.tokens)
        ended = len(output.errors) + sum(token.finish is not None for token in output.tokens)
        if ended:
            self._finished.release(ended)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._finished.release(SLOTS)


def _llama(mode: str, model: Path, threads: int) -> Side:
    from benchmarks.llama_batches import CAPACITY, BareLlama

    if mode == "bare":
        return BareLlama(model, threads)
    from xi_plugins.engines.llama_cpp.llama_cpp_python.engine import LlamaCppPythonEngine

    return Batched(LlamaCppPythonEngine(), model, "ggufv2", threads=threads, context_length=CONTEXT, slots=SLOTS, batch_size=CAPACITY)


def _mlx(mode: str, model: Path, threads: int) -> Side:
    from benchmarks.mlx_batches import BareMlx

    if mode == "bare":
        return BareMlx(model)
    from xi_plugins.engines.mlx.engine import MlxEngine

    return Batched(MlxEngine(), model, "mlx", context_length=CONTEXT, batch_size=SLOTS)


SIDES = {"llama-cpp-python": _llama, "mlx": _mlx}


def main() -> None:
    """Take orders until killed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches")
    parser.add_argument("engine", choices=tuple(SIDES))
    parser.add_argument("mode", choices=("bare", "batched"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    side = SIDES[arguments.engine](arguments.mode, arguments.model, arguments.threads)
    print("ready", flush=True)
    for order in orders():
        print(json.dumps(side.run(order["prompts"], order["tokens"])), flush=True)


if __name__ == "__main__":
    main()
