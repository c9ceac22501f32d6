"""What xi costs vLLM: the same streamed requests through the whole of xi and at vLLM's bare server, in turns.

Run it with the interpreter of an environment that has vLLM (`make .venv-engines/vllm/.ready` builds one). Both servers run all the time
with the same options, and are idle while the other is measured. Beside tokens per second and the time to the first token it counts the
CPU of xi's own processes per token, which a machine that has other work moves least.

The targets are for the model of 60 M. The one of 1 M costs next to nothing itself: it shows what all the processes cost, vLLM's own and
xi's, which on a machine of few cores take turns on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.bodies import CHAT, request
from benchmarks.client import BadAnswer, Client
from benchmarks.gateways import free_port
from benchmarks.processes import READY, Child, NotReady, family_cpu
from benchmarks.random_model import TOKENIZER, make_directory
from benchmarks.results import Row, ratio, report
from benchmarks.served import launch, xi_serve

COMPLETIONS = "/v1/completions"
STREAMS = (8, 32)
SLOTS = 32
WORDS = 32
CONTEXT = 1024
LEAST_THROUGHPUT = 0.97
MOST_TTFT = 1.05
OPTIONS: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": SLOTS, "max_model_len": CONTEXT}
CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1"}
START = 180.0
"""Seconds in which vLLM must be ready."""
REST = 1.5
"""Seconds between two batches: vLLM's processes look for work without a pause for a second after the last (its `SpinCondition`), which the
other side would pay for."""
FIRST_TOKENS = 16
"""Length of the answers to further batches of which only the time to the first token counts: it scatters far more than the throughput."""
_SERVER = "vllm.entrypoints"
_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')


class Measured(msgspec.Struct):
    """One batch: tokens per second, the median seconds to the first token, and CPU seconds per token of xi's processes."""

    rate: float
    ttft: float
    cpu: float = 0.0


class Side(msgspec.Struct):
    """A server to ask, and the CPU seconds that xi's own processes have used for it so far."""

    url: str
    model: str
    cpu: Callable[[], float] = lambda: 0.0


class Load(msgspec.Struct):
    """What is asked at once: so many streams on this route, each answered with so many tokens."""

    route: str
    streams: int
    tokens: int

    def requests(self, model: str, repetition: int) -> list[bytes]:
        """Those of one repetition: texts of their own, so that no cache of prompts helps."""
        choose = random.Random(f"{self.route} {self.streams} {self.tokens} {repetition}")
        return [self._request(model, " ".join(choose.choices(_VOCABULARY, k=WORDS))) for _ in range(self.streams)]

    def _request(self, model: str, text: str) -> bytes:
        prompt: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if self.route == CHAT else {"prompt": text}
        fields = {"ignore_eos": True, "stream_options": {"include_usage": True}, **prompt}
        return request("localhost", model, stream=True, max_tokens=self.tokens, path=self.route, **fields)


_VOCABULARY = ("the", "capital", "of", "France", "is", "what", "time", "it", "in", "Paris", "a", "cat", "rain", "two", "and", "red")


async def _asked(url: str, requests: list[bytes]) -> tuple[float, list[float], list[bytes]]:
    """Seconds until the last answer was whole, those until each one's first token, and the answers."""
    client = await Client.to(url, len(requests))
    try:
        began = time.perf_counter()
        answers = await client.at_once(requests)
        return time.perf_counter() - began, [at - began for at in client.first_tokens], answers
    finally:
        client.close()


def measure(side: Side, load: Load, repetition: int) -> Measured:
    """One batch at one side. Raises `BadAnswer` where an answer hasn't as many tokens as were asked for."""
    requests = load.requests(side.model, repetition)
    time.sleep(REST)
    before = side.cpu()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seconds, firsts, answers = runner.run(_asked(side.url, requests))
    cpu = side.cpu() - before
    for answer in answers:
        counted = _TOKENS.findall(answer)
        if not counted or int(counted[-1]) != load.tokens:
            raise BadAnswer(f"{side.url} gave {counted[-1:]} tokens instead of {load.tokens}: {answer[-600:].decode(errors='replace')}")
    tokens = load.streams * load.tokens
    return Measured(rate=tokens / seconds, ttft=statistics.median(firsts), cpu=cpu / tokens)


# ---- the two sides ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _bare(model: Path) -> Iterator[Side]:
    """vLLM's own server with the command line that xi would give it, on a port and without a key."""
    from xi_core.engine.child_address import Address
    from xi_core.testing.harness import plan_for
    from xi_plugins.engines.vllm.engine import VllmEngine

    with tempfile.TemporaryDirectory() as folder:
        address = Address(key="", folder=folder, port=free_port())
        plan = plan_for("xi_plugins.engines.vllm.engine:VllmEngine", str(model), "pytorch", "bare", **OPTIONS)
        command = VllmEngine().command(plan, address)
        url = f"http://127.0.0.1:{address.port}"
        with Child(command.argv, {**command.defaults, **CACHE}) as child:
            _wait(child, url)
            yield Side(url=url, model="bare")


def _wait(child: Child, url: str) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and child.running():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=READY) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise NotReady(f"vLLM's server is not ready\n{child.output()}")


@contextlib.contextmanager
def _through_xi(model: Path, home: Path) -> Iterator[Side]:
    with xi_serve(home) as (serving, url):
        launch(url, model_name=str(model), model_uid="bench", model_engine="vLLM", n_gpu=None, env=CACHE, **OPTIONS)
        yield Side(url=url, model="bench", cpu=lambda: _own_cpu(serving))


def _own_cpu(serving: Child) -> float:
    """CPU seconds of xi's processes: all but vLLM's server and what that has started."""
    family = serving.family()
    servers = [process for process in family if any(_SERVER in word for word in process.cmdline())]
    theirs = {process.pid for server in servers for process in (server, *server.children(recursive=True))}
    return family_cpu([process for process in family if process.pid not in theirs])


# ---- the whole --------------------------------------------------------------------------------------


Pairs = list[tuple[Measured, Measured]]
"""Of xi and of vLLM's server, measured one after the other."""


def _pairs(ours: Side, theirs: Side, load: Load, repetitions: int) -> Pairs:
    """So many pairs. One before them doesn't count, and who begins alternates."""
    pairs = []
    for n in range(repetitions + 1 if repetitions else 0):
        sides = (ours, theirs) if n % 2 else (theirs, ours)
        first, second = (measure(side, load, n) for side in sides)
        pairs.append((first, second) if n % 2 else (second, first))
    return pairs[1:]


def _rows(what: str, pairs: Pairs, of_firsts: Pairs, *, wanted: bool) -> list[Row]:
    rates = [(ours.rate, theirs.rate) for ours, theirs in pairs]
    firsts = [(1000 * ours.ttft, 1000 * theirs.ttft) for ours, theirs in (*pairs, *of_firsts)]
    cpu = 1e6 * statistics.median(ours.cpu for ours, _ in pairs)
    return [
        ratio(what, "tokens/s", "vLLM's server", rates, least=LEAST_THROUGHPUT if wanted else None),
        ratio(what, "ms to the first token", "vLLM's server", firsts, most=MOST_TTFT if wanted else None),
        Row(what=what, unit="µs of xi's CPU per token", value=cpu, target="", met=True),
    ]


def _compare(name: str, model: Path, home: Path, tokens: int, repetitions: int, firsts: int, *, wanted: bool) -> Iterator[Row]:
    with _bare(model) as theirs, _through_xi(model, home) as ours:
        for load in (Load(route=route, streams=streams, tokens=tokens) for route in (CHAT, COMPLETIONS) for streams in STREAMS):
            pairs = _pairs(ours, theirs, load, repetitions)
            of_firsts = _pairs(ours, theirs, msgspec.structs.replace(load, tokens=FIRST_TOKENS), firsts)
            yield from _rows(f"{name}, {load.streams} streams, {load.route.removeprefix('/v1/')}", pairs, of_firsts, wanted=wanted)


def run(*, quick: bool, save: bool) -> bool:
    """Measure and report. True when all targets are met."""
    tokens, repetitions, firsts = (64, 4, 4) if quick else (128, 12, 36)
    with tempfile.TemporaryDirectory(prefix="xi-bench-") as directory:
        folder = Path(directory)
        large = make_directory(folder / "random-60m")
        rows = [
            *_compare("xi-tiny (1 M)", TOKENIZER, folder / "home-tiny", tokens, repetitions // 2, 0, wanted=False),
            *_compare("random Qwen2 (60 M)", large, folder / "home-60m", tokens, repetitions, firsts, wanted=True),
        ]
    conditions = {
        "options": OPTIONS,
        "answer_tokens": tokens,
        "first_answer_tokens": FIRST_TOKENS,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    return report("vllm", rows, conditions, save=save)
