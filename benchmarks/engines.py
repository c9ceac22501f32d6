"""What xi costs an engine: tokens per second of streamed requests through the whole of xi, beside the bare library, in turns.
The same per second of CPU, all processes of a side together, tells more on a machine that has other work to do.

Prompts are token ids, equally long, and all answers have the same length, so that the library's static batch wastes nothing; every
repetition has prompts of its own, so that no cache of prompts helps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from msgspec import structs

from benchmarks.bodies import request
from benchmarks.client import BadAnswer, Client
from benchmarks.peers import CONTEXT, SLOTS
from benchmarks.processes import ROOT, Child, family_cpu
from benchmarks.random_model import RandomModel, make
from benchmarks.results import Row, ratio, report
from benchmarks.served import launch, xi_serve

REQUESTS = SLOTS
TRANSFORMERS_REQUESTS = (1, 8, SLOTS)
"""How many at once."""
PROMPT = 48
COMPLETIONS = "/v1/completions"
WITH_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
TRANSFORMERS_TARGET = 0.9
LLAMA_TARGET = 0.95
BATCHES_TARGET = 0.9
ENGINES = {
    "transformers": ("xi_plugins.engines.transformers.engine:TransformersEngine", "pytorch"),
    "llama.cpp": ("xi_plugins.engines.llama_cpp.engine:LlamaCppEngine", "ggufv2"),
}

Prompts = list[list[int]]
Measure = Callable[[Prompts, int], float]
"""Seconds for these prompts with so many tokens each."""


class Side(msgspec.Struct):
    """What is measured: how to run a batch on it, and the CPU seconds that all its processes have used so far."""

    run: Measure
    cpu: Callable[[], float]


class Rates(msgspec.Struct):
    """Tokens per second, and per second of CPU in all processes of a side."""

    wall: float
    cpu: float


class Load(msgspec.Struct):
    """How much is measured."""

    tokens: int
    repetitions: int
    vocabulary: int
    requests: int = REQUESTS

    def prompts(self, repetition: int) -> Prompts:
        """Those of one repetition."""
        choose = random.Random(1000 * repetition + self.requests)
        return [[choose.randrange(self.vocabulary) for _ in range(PROMPT)] for _ in range(self.requests)]

    def measure(self, side: Side, repetition: int) -> Rates:
        """One batch."""
        before = side.cpu()
        seconds = side.run(self.prompts(repetition), self.tokens)
        tokens = self.requests * self.tokens
        return Rates(wall=tokens / seconds, cpu=tokens / (side.cpu() - before))


def _over_http(url: str, model: str) -> Measure:
    """Streamed completions at a server."""

    async def ask(requests: list[bytes]) -> tuple[float, list[bytes]]:
        client = await Client.to(url, len(requests))
        try:
            began = time.perf_counter()
            answers = await client.at_once(requests)
            return time.perf_counter() - began, answers
        finally:
            client.close()

    def measure(prompts: Prompts, tokens: int) -> float:
        fields = {"ignore_eos": True, **WITH_USAGE}
        requests = [
            request("localhost", model, stream=True, max_tokens=tokens, path=COMPLETIONS, prompt=prompt, **fields) for prompt in prompts
        ]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            seconds, answers = runner.run(ask(requests))
        for answer in answers:
            counted = re.findall(rb'"completion_tokens":\s*(\d+)', answer)
            if not counted or int(counted[-1]) != tokens:
                raise BadAnswer(f"{url} gave {counted[-1:]} tokens instead of {tokens}: {answer[-600:].decode(errors='replace')}")
        return seconds

    return measure


def _in_this_process(engine: str, path: Path, format: str, **options: Any) -> contextlib.AbstractContextManager[Measure]:
    """xi's serving layer and engine without its processes: for profiling."""
    from xi_core.testing.harness import Harness, plan_for

    @contextlib.contextmanager
    def serving() -> Iterator[Measure]:
        with Harness(plan_for(engine, str(path), format, **options)) as harness:

            def measure(prompts: Prompts, tokens: int) -> float:
                began = time.perf_counter()
                fields = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True, **WITH_USAGE}
                calls = [harness.submit(COMPLETIONS, {"prompt": prompt, **fields}) for prompt in prompts]
                answers = [call.answer() for call in calls]
                seconds = time.perf_counter() - began
                for answer in answers:
                    if answer.error or answer.usage["completion_tokens"] != tokens:
                        raise BadAnswer(f"xi gave {answer.error or answer.usage} instead of {tokens} tokens")
                return seconds

            yield measure

    return serving()


def _ordered(child: Child, mode: str) -> Side:
    """The bare library in a process that takes orders."""

    def run(prompts: Prompts, tokens: int) -> float:
        child.tell(json.dumps({"mode": mode, "prompts": prompts, "tokens": tokens}))
        return float(child.line(300.0))

    return Side(run=run, cpu=_cpu_of(child))


def _cpu_of(child: Child) -> Callable[[], float]:
    return lambda: family_cpu(child.family())


def _peer(role: str, model: Path, threads: int) -> Child:
    return Child([sys.executable, "-m", "benchmarks.peers", role, "--model", str(model), "--threads", str(threads)])


@contextlib.contextmanager
def _xi(model: Path, engine: str, threads: int, in_process: bool, home: Path) -> Iterator[Side]:
    options = {"threads": threads, "context_length": CONTEXT, "batch_size" if engine == "transformers" else "slots": SLOTS}
    if in_process:
        path, format = ENGINES[engine]
        with _in_this_process(path, model, format, **options) as run:
            yield Side(run=run, cpu=time.process_time)
        return
    with xi_serve(home) as (serving, url):
        launch(url, model_name=str(model), model_uid="bench", model_engine=engine, n_gpu=None, **options)
        yield Side(run=_over_http(url, "bench"), cpu=_cpu_of(serving))


def _in_turns(load: Load, sides: list[Side]) -> list[list[Rates]]:
    """Each side's rates, repetition by repetition, after one round that doesn't count."""
    for side in sides:
        side.run(load.prompts(0), 8)
    return [[load.measure(side, n) for side in sides] for n in range(1, load.repetitions + 1)]


def _rows(what: str, peer: str, pairs: list[tuple[Rates, Rates]], least: float) -> list[Row]:
    walls = [(ours.wall, theirs.wall) for ours, theirs in pairs]
    cpus = [(ours.cpu, theirs.cpu) for ours, theirs in pairs]
    return [ratio(what, "tokens/s", peer, walls, least=least), ratio(what, "tokens/CPU-s", peer, cpus, least=least)]


def _transformers(model: RandomModel, load: Load, threads: int, in_process: bool, home: Path) -> list[Row]:
    with _peer("transformers", model.hf, threads) as peer, _xi(model.hf, "transformers", threads, in_process, home) as ours:
        peer.line()
        sides = [ours, _ordered(peer, "static"), _ordered(peer, "continuous")]
        return [row for count in TRANSFORMERS_REQUESTS for row in _against_the_faster(structs.replace(load, requests=count), sides)]


def _against_the_faster(load: Load, sides: list[Side]) -> list[Row]:
    """Ours beside the faster of the library's two ways."""
    rounds = _in_turns(load, sides)
    static, continuous = (sum(rates[side].wall for rates in rounds) for side in (1, 2))
    faster, name = (1, "static") if static >= continuous else (2, "continuous")
    what = f"transformers, {load.requests} streamed request{'s' * (load.requests > 1)} of {load.tokens} tokens"
    return _rows(what, f"library, {name} batching", [(rates[0], rates[faster]) for rates in rounds], TRANSFORMERS_TARGET)


def _llama(model: RandomModel, load: Load, threads: int, in_process: bool, home: Path) -> list[Row]:
    with _peer("llama", model.gguf, threads) as peer, _xi(model.gguf, "llama.cpp", threads, in_process, home) as ours:
        listener = Side(run=_over_http(peer.line().strip(), "raw"), cpu=_cpu_of(peer))
        rounds = _in_turns(load, [ours, listener])
    what = f"llama.cpp, {REQUESTS} streamed requests of {load.tokens} tokens"
    return _rows(what, "xllamacpp's listener", [(ours, theirs) for ours, theirs in rounds], LLAMA_TARGET)


def _llama_cpp_python(model: RandomModel, load: Load, threads: int, in_process: bool, home: Path) -> list[Row]:
    return _batches("llama-cpp-python", "a bare loop over its batches", model.gguf, load, threads)


def _mlx(model: RandomModel, load: Load, threads: int, in_process: bool, home: Path) -> list[Row]:
    """Shorter answers: MLX computes in bfloat16, slowly on a CPU."""
    return _batches("mlx", "the bare BatchGenerator", model.hf, structs.replace(load, tokens=load.tokens // 6), threads)


def _batches(engine: str, peer: str, model: Path, load: Load, threads: int) -> list[Row]:
    """xi's engine and batcher, without its serving layer, beside the bare library: both in the environment that has the library."""
    python = ROOT / ".venv-engines" / engine / "bin" / "python"
    if not python.exists():
        print(f"{engine} is left out: `make test-engine-{engine}` makes the environment that it is measured in")
        return []
    command = [str(python), "-m", "benchmarks.batches", engine]
    arguments = ["--model", str(model), "--threads", str(threads)]
    with Child([*command, "batched", *arguments]) as ours, Child([*command, "bare", *arguments]) as bare:
        for child in (ours, bare):
            child.line()
        rounds = _in_turns(load, [_ordered(ours, ""), _ordered(bare, "")])
    what = f"{engine}, {REQUESTS} requests of {load.tokens} tokens"
    return _rows(what, peer, [(ours, theirs) for ours, theirs in rounds], BATCHES_TARGET)


def run(*, quick: bool, save: bool, in_process: bool, threads: int | None) -> bool:
    """Measure and report. True when all targets are met. By default one core is left to those who ask."""
    threads = threads or max(1, (os.cpu_count() or 1) - 1)
    with tempfile.TemporaryDirectory(prefix="xi-bench-") as directory:
        folder = Path(directory)
        model = make(folder)
        load = Load(tokens=64 if quick else 96, repetitions=2 if quick else 5, vocabulary=model.vocabulary)
        rows = [
            row
            for part in (_transformers, _llama, _llama_cpp_python, _mlx)
            for row in part(model, load, threads, in_process, folder / "home")
        ]
    conditions = {
        "model": "random Qwen2, 60 M",
        "threads": threads,
        "prompt_tokens": PROMPT,
        "through": "harness" if in_process else "xi serve",
    }
    return report("engines", rows, conditions, save=save)
