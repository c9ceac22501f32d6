"""Engines for tests, small enough to read: `CountingEngine` (a TokenEngine) and `ScriptedEngine` (an ApiEngine). The kit is run on both."""

from __future__ import annotations

import math
import random
import threading
import time
from typing import Any

import msgspec

from xi_core.engine.base import (
    ApiEngine,
    ApiRequest,
    ApiSink,
    EngineStats,
    LoadedModel,
    Progress,
    SamplingParams,
    StepOutput,
    TokenEngine,
    Tokenizer,
    TokenLogprobs,
    TokenOut,
)
from xi_core.errors import ContextLengthExceeded
from xi_core.testing.fake_plugin import counting_manifest, full_manifest
from xi_core.wire.plan import LaunchPlan

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
END = 256
CONTEXT = 512
TEXT = "one two three four five six seven eight nine ten 😀 你好 eleven twelve thirteen fourteen fifteen"


class ByteTokenizer(Tokenizer):
    """Each byte is a token; 256 ends the answer."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < END else b""

    @property
    def vocabulary_size(self) -> int:
        return END + 1

    @property
    def chat_template(self) -> str | None:
        return TEMPLATE


class _Sequence:
    def __init__(self, sampling: SamplingParams) -> None:
        self.sampling = sampling
        self.done = 0
        self.random = random.Random(sampling.seed)
        self.text = TEXT.encode()


class CountingEngine(TokenEngine):
    """Writes `TEXT`, byte by byte, whatever it is asked; above temperature 1e-5 a seeded generator picks letters instead."""

    def __init__(self) -> None:
        self._running: dict[int, _Sequence] = {}
        self._stats = EngineStats()
        self.slots = 4
        self.pace = 0.0

    @property
    def tokenizer(self) -> Tokenizer:
        return ByteTokenizer()

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        progress("loading", 1.0)
        self.slots = int(plan.options.get("slots", 4))
        self.pace = float(plan.options.get("pace", 0.0))
        return LoadedModel(context_length=int(plan.options.get("context_length", CONTEXT)), slots=self.slots, manifest=counting_manifest())

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._running), steps=self._stats.steps, tokens=self._stats.tokens)

    def has_capacity(self) -> bool:
        return len(self._running) < self.slots

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        self._running[id] = _Sequence(sampling)

    def remove(self, id: int) -> None:
        self._running.pop(id, None)

    def step(self) -> StepOutput:
        time.sleep(self.pace)
        self._stats.steps += 1
        outs = [self._next(id, sequence) for id, sequence in list(self._running.items())]
        for out in outs:
            if out.finish is not None:
                self.remove(out.id)
        self._stats.tokens += len(outs)
        return StepOutput(outs)

    def _next(self, id: int, sequence: _Sequence) -> TokenOut:
        sampling = sequence.sampling
        token = sequence.text[sequence.done % len(sequence.text)]
        if sampling.temperature > 1e-5:
            token = sequence.random.choice(b"abcdefghijklmnopqrstuvwxyz")
        if sampling.logit_bias:
            token = max(sampling.logit_bias, key=lambda one: sampling.logit_bias[one])
        sequence.done += 1
        ended = sequence.done > len(sequence.text) and not sampling.ignore_eos
        finish: Any = "stop" if ended else "length" if sequence.done >= sampling.max_tokens else None
        logprobs = None
        if sampling.logprobs is not None:
            others = [(other, math.log(0.01)) for other in range(97, 97 + sampling.logprobs)]
            logprobs = TokenLogprobs(math.log(0.5), [(token, math.log(0.5)), *others][: sampling.logprobs])
        return TokenOut(id, END if ended else token, finish, logprobs)


class ScriptedEngine(ApiEngine):
    """Speaks OpenAI's events: a thread per request runs a `CountingEngine` of its own and writes what it gives."""

    def __init__(self) -> None:
        self._stats = EngineStats()
        self._aborted: dict[int, threading.Event] = {}

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        progress("loading", 1.0)
        return LoadedModel(context_length=CONTEXT, slots=int(plan.options.get("slots", 4)), manifest=full_manifest())

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._aborted), steps=self._stats.steps)

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        wrong = next((id for id in request.body.get("logit_bias", {}) if int(id) > END), None)
        if wrong is not None:
            sink.failed(request.id, 400, f"token id {wrong} is outside the vocabulary", "logit_bias")
            return
        stop = self._aborted[request.id] = threading.Event()
        threading.Thread(target=self._write, args=(request, sink, stop), daemon=True).start()

    def abort(self, id: int) -> None:
        stop = self._aborted.get(id)
        if stop is not None:
            stop.set()

    def _write(self, request: ApiRequest, sink: ApiSink, stop: threading.Event) -> None:
        body, chat = request.body, request.route.endswith("/chat/completions")
        if len(str(body.get("messages") or body.get("prompt"))) > CONTEXT:
            del self._aborted[request.id]
            sink.failed(request.id, 400, "the prompt is too long", "messages" if chat else "prompt", ContextLengthExceeded.code)
            return
        text, finish, tokens = _script(body)
        for piece in text:
            if stop.is_set():
                break
            self._stats.steps += 1
            logprobs = {"content": [_logprob(piece, body)]} if body.get("logprobs") is not None else None
            choice: dict[str, Any] = {"index": 0, "delta": {"content": piece}} if chat else {"index": 0, "text": piece}
            if body.get("return_token_ids"):
                choice |= {"token_ids": [ord(piece)], "prompt_token_ids": [1, 2, 3]}
            sink.event(request.id, msgspec.json.encode({"choices": [{**choice, "logprobs": logprobs, "finish_reason": None}]}))
        last = {"index": 0, "delta": {}, "finish_reason": finish}
        if body.get("return_token_ids"):  # of tokens without text: the end, or what a stop string is made of
            last |= {"token_ids": [END] * (tokens - len(text))}
        usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
        sink.event(request.id, msgspec.json.encode({"choices": [last], "usage": usage}))
        del self._aborted[request.id]
        sink.done(request.id)


def _logprob(piece: str, body: dict[str, Any]) -> dict[str, Any]:
    asked = int(body.get("top_logprobs") or (1 if body["logprobs"] is True else body["logprobs"]))
    tokens = [piece, *(chr(0x100 + other) for other in range(asked - 1))]
    top = [{"token": token, "logprob": math.log(0.5 ** (rank + 1)), "bytes": list(token.encode())} for rank, token in enumerate(tokens)]
    return {**top[0], "top_logprobs": top[:asked]}


def _script(body: dict[str, Any]) -> tuple[str, str, int]:
    """The text of an answer (a character is a token), how it finishes, and its tokens."""
    text = TEXT
    if body["temperature"] > 1e-5:
        chooser = random.Random(body.get("seed"))
        text = "".join(chooser.choice("abcdefghijklmnopqrstuvwxyz") for _ in TEXT)
    if body.get("logit_bias"):
        text = chr(int(max(body["logit_bias"], key=body["logit_bias"].get))) * len(TEXT)
    most = body.get("max_tokens") or 400
    if body["ignore_eos"]:
        text = (text * (most // len(text) + 1))[:most]
    for stop in body["stop"]:
        if stop in text[:most]:
            end = text.index(stop)
            return text[:end], "stop", end + len(stop)
    return (text[:most], "length", most) if most <= len(text) else (text, "stop", len(text) + 1)
