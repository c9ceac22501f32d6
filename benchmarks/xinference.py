"""xi's transformers engine beside Xinference's: the same streamed chats at both servers, in turns.

Xinference runs in an environment of its own: `--python` names its interpreter; without it one is built in `benchmarks/.venv-xinference`
(2.5 GB). torchvision, which Xinference pulls in, is taken out of it: built for another PyTorch, it keeps every launch from
loading. Both servers run the whole time, each with the same model and threads, and are idle while the other is measured.

The data type counts for much: of a bfloat16 checkpoint xi computes in bfloat16, Xinference on a CPU in float32. Both are measured: each by
its own default, which is what users get and what the targets are for, and both in float32.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.bodies import CHAT, request
from benchmarks.client import BadAnswer, Client
from benchmarks.gateways import free_port
from benchmarks.processes import ROOT, Child, NotReady, family_cpu
from benchmarks.random_model import make_endless
from benchmarks.results import Row, ratio, report
from benchmarks.served import launch, xi_serve

ENVIRONMENT = ROOT / "benchmarks" / ".venv-xinference"
VERSION = "xinference[transformers]==4.1.*"
STREAMS = 32
WORDS = 32
CONTEXT = 1024
START = 120.0
"""Seconds in which Xinference must be ready, and again a launch in it."""
_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
_VOCABULARY = ("the", "capital", "of", "France", "is", "what", "time", "it", "in", "Paris", "a", "cat", "rain", "two", "and", "red")
_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')


class Case(msgspec.Struct):
    """A model of that size, as a checkpoint in `stored`; `dtype`: in which both compute, None where each does as it likes."""

    size: str
    stored: str
    dtype: str | None
    least: float | None = None
    """The ratio that is wanted."""


CASES = (
    Case("1 M", "float32", "float32", 4.0),
    Case("60 M", "bfloat16", None, 3.0),
    Case("60 M", "float32", "float32"),
)


class Side(msgspec.Struct):
    """A server that serves a model as `bench`, and all its processes."""

    url: str
    child: Child

    def measure(self, tokens: int, repetition: int) -> tuple[float, float]:
        """Tokens per second of `STREAMS` chats at once, and per second of CPU. Raises `BadAnswer` for an answer of another length."""
        requests = _requests(tokens, repetition)
        before = family_cpu(self.child.family())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            seconds, answers = runner.run(_asked(self.url, requests))
        cpu = family_cpu(self.child.family()) - before
        for answer in answers:
            counted = _TOKENS.findall(answer)
            if not counted or int(counted[-1]) != tokens:
                raise BadAnswer(f"{self.url} gave {counted[-1:]} tokens instead of {tokens}: {answer[-600:].decode(errors='replace')}")
        return STREAMS * tokens / seconds, STREAMS * tokens / cpu


def _requests(tokens: int, repetition: int) -> list[bytes]:
    """Texts of their own for each repetition, so that no cache of prompts helps."""
    choose = random.Random(repetition)
    texts = [" ".join(choose.choices(_VOCABULARY, k=WORDS)) for _ in range(STREAMS)]
    fields: dict[str, Any] = {"stream_options": {"include_usage": True}}
    messages = ([{"role": "user", "content": text}] for text in texts)
    return [request("localhost", "bench", stream=True, max_tokens=tokens, messages=said, path=CHAT, **fields) for said in messages]


async def _asked(url: str, requests: list[bytes]) -> tuple[float, list[bytes]]:
    client = await Client.to(url, len(requests))
    try:
        began = time.perf_counter()
        answers = await client.at_once(requests)
        return time.perf_counter() - began, answers
    finally:
        client.close()


# ---- Xinference -------------------------------------------------------------------------------------


def installed(python: Path | None) -> Path:
    """The interpreter that has Xinference: `python`, or that of an environment made for it."""
    if python is not None:
        return python
    found = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / ".ready").exists():
        print(f"installing Xinference into {ENVIRONMENT.relative_to(ROOT)}: 2.5 GB, some minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        pip = [str(found), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "install", *constraints, "torch"], check=True)
        subprocess.run([*pip, "install", *constraints, VERSION], check=True)
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)
        (ENVIRONMENT / ".ready").touch()
    return found


@contextlib.contextmanager
def _xinference(python: Path, model: Path, dtype: str | None, threads: int, home: Path) -> Iterator[Side]:
    port = free_port()
    argv = [str(python.with_name("xinference-local")), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "XINFERENCE_AUTH_ADVANCED": "false", "XINFERENCE_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip
    with Child(argv, environment) as child:
        url = f"http://127.0.0.1:{port}"
        _wait(child, url)
        _post(f"{url}/v1/model_registrations/LLM", {"model": json.dumps(_family(model)), "persist": False})
        _post(f"{url}/v1/models", {
            "model_uid": "bench", "model_name": "bench", "model_type": "LLM", "model_engine": "transformers", "model_format": "pytorch",
            "model_size_in_billions": 1, "quantization": "none", "n_gpu": None, "enable_virtual_env": False,
            **({"torch_dtype": dtype} if dtype else {}),
        })  # fmt: skip
        yield Side(url=url, child=child)


def _family(model: Path) -> dict[str, Any]:
    """The registration that Xinference wants for a model of one's own."""
    spec = {"model_format": "pytorch", "model_size_in_billions": 1, "quantization": "none", "model_uri": str(model), "model_id": None}
    return {
        "version": 2, "context_length": CONTEXT, "model_name": "bench", "model_lang": ["en"], "model_ability": ["generate", "chat"],
        "model_description": "random", "model_family": "bench", "architectures": ["Qwen2ForCausalLM"], "model_specs": [spec],
        "chat_template": _TEMPLATE, "stop_token_ids": [], "stop": [], "virtualenv": None,
    }  # fmt: skip


def _wait(child: Child, url: str) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and child.running():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v1/models", timeout=5.0):
            return
        time.sleep(0.2)
    raise NotReady(f"Xinference is not ready\n{child.output()}")


def _post(url: str, body: dict[str, Any]) -> None:
    asking = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asking, timeout=START) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        raise NotReady(f"{url}: {error.read().decode(errors='replace')[:1000]}") from None


# ---- xi ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _xi(model: Path, dtype: str | None, threads: int, home: Path) -> Iterator[Side]:
    (model / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    options = {"threads": threads, "context_length": CONTEXT, "batch_size": STREAMS, "dtype": dtype or "auto"}
    with xi_serve(home) as (serving, url):
        launch(url, model_name=str(model), model_uid="bench", model_engine="transformers", n_gpu=None, **options)
        yield Side(url=url, child=serving)


# ---- the whole --------------------------------------------------------------------------------------


def _compare(case: Case, python: Path, folder: Path, threads: int, tokens: int, repetitions: int) -> list[Row]:
    model = make_endless(folder / "model", case.size, case.stored)
    pairs = []
    dtype = case.dtype
    with _xinference(python, model, dtype, threads, folder / "xinference") as theirs, _xi(model, dtype, threads, folder / "xi") as ours:
        for n in range(repetitions + 1):  # the first doesn't count, and who begins alternates
            sides = (ours, theirs) if n % 2 else (theirs, ours)
            first, second = (side.measure(tokens, n) for side in sides)
            pairs.append((first, second) if n % 2 else (second, first))
    what = f"{case.size}, {f'both in {dtype}' if dtype else f'{case.stored} checkpoint, each by its default'}, {STREAMS} streams"
    return [
        ratio(what, unit, "Xinference 4.1", [(mine[at], other[at]) for mine, other in pairs[1:]], least=case.least)
        for at, unit in enumerate(("tokens/s", "tokens/CPU-s"))
    ]


def run(*, quick: bool, save: bool, python: Path | None, threads: int | None) -> bool:
    """Measure and report. True when all targets are met. By default one core is left to those who ask."""
    threads = threads or max(1, (os.cpu_count() or 1) - 1)
    interpreter = installed(python)
    rows: list[Row] = []
    tokens, repetitions = 64, 2 if quick else 5
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="xi-bench-") as directory:
            rows += _compare(case, interpreter, Path(directory), threads, tokens, repetitions)
    conditions = {"threads": threads, "answer_tokens": tokens, "streams": STREAMS}
    return report("xinference", rows, conditions, save=save)
