"""What xi adds to an engine's start: a launch at a running `xi serve` until it answers, beside the bare library's start, in turns.

The bare side is a process that imports the library, loads the same model with the same settings, and says when it is ready. xi's is the
launch as a client sees it: the request that asks for it, until it is told that the model is ready. Both read the files from the page cache.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import CONTEXT, SLOTS
from benchmarks.processes import Child
from benchmarks.random_model import make
from benchmarks.results import Row, at_most, report
from benchmarks.served import launch, terminate, xi_serve

MOST = 1.0
"""Seconds that xi may add."""


def _bare(engine: str, model: Path, threads: int) -> float:
    role = "llama" if engine == "llama.cpp" else engine
    began = time.perf_counter()
    with Child([sys.executable, "-m", "benchmarks.peers", role, "--model", str(model), "--threads", str(threads)]) as child:
        child.line()
        return time.perf_counter() - began


def _launched(url: str, engine: str, model: Path, threads: int) -> float:
    slots = "batch_size" if engine == "transformers" else "slots"
    options = {"threads": threads, "context_length": CONTEXT, slots: SLOTS}
    began = time.perf_counter()
    launch(url, model_name=str(model), model_uid="bench", model_engine=engine, n_gpu=None, **options)
    seconds = time.perf_counter() - began
    terminate(url, "bench")
    return seconds


def _added(engine: str, model: Path, url: str, threads: int, repetitions: int) -> Row:
    pairs = []
    for n in range(repetitions + 1):  # the first doesn't count, and who begins alternates
        if n % 2:
            ours = _launched(url, engine, model, threads)
            theirs = _bare(engine, model, threads)
        else:
            theirs = _bare(engine, model, threads)
            ours = _launched(url, engine, model, threads)
        pairs.append((ours, theirs))
    added = statistics.median(ours - theirs for ours, theirs in pairs[1:])
    alone = statistics.median(theirs for _, theirs in pairs[1:])
    return at_most(f"{engine}: a launch, over the {alone:.2g} s of the bare library's start", "s", added, MOST)


def run(*, quick: bool, save: bool, threads: int | None) -> bool:
    """Measure and report. True when all targets are met. By default one core is left to those who ask."""
    threads = threads or max(1, (os.cpu_count() or 1) - 1)
    with tempfile.TemporaryDirectory(prefix="xi-bench-") as directory:
        folder = Path(directory)
        model = make(folder)
        with xi_serve(folder / "home") as (_, url):
            sides = (("transformers", model.hf), ("llama.cpp", model.gguf))
            rows = [_added(engine, path, url, threads, 2 if quick else 5) for engine, path in sides]
    return report("launching", rows, {"model": "random Qwen2, 60 M", "threads": threads}, save=save)
