"""A Markov chain over the characters of a text file, as a `TokenEngine`. Loaded only in a replica's process."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from pathlib import Path

from xi_core.engine.base import (
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
from xi_core.errors import ArtifactError
from xi_core.wire.plan import LaunchPlan

from {{ cookiecutter.package }}.plugin import manifest

END = 256
ORDER = 12
"""Bytes of context that the next byte depends on, at most."""
TEMPLATE = "{% raw %}{% for message in messages %}{{ message.content }} {% endfor %}{% endraw %}"


class ByteTokenizer(Tokenizer):
    """Every byte is a token, and 256 ends the text."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < END else b""

    @property
    def vocabulary_size(self) -> int:
        return END + 1

    @property
    def chat_template(self) -> str:
        return TEMPLATE


class Sequence:
    """One running request."""

    def __init__(self, prompt: list[int], sampling: SamplingParams) -> None:
        self.tokens = list(prompt)
        self.prompt_length = len(prompt)
        self.sampling = sampling
        self.random = random.Random(sampling.seed)


class MarkovEngine(TokenEngine):
    """Counts which byte follows which context, longest context first."""

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        self._running: dict[int, Sequence] = {}
        self._slots = 0
        self._steps = 0

    @property
    def tokenizer(self) -> Tokenizer:
        return ByteTokenizer()

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        path = Path(plan.artifact.path)
        text = path.read_bytes()
        if not text:
            raise ArtifactError(f"{path} is empty: a Markov chain needs a text to learn from")
        for number, paragraph in enumerate(text.split(b"\n\n")):
            self._learn([*paragraph, END])
            progress("learning", min(1.0, (number + 1) * 80 / len(text)))
        self._slots = int(plan.options.get("slots", 8))
        return LoadedModel(context_length=int(plan.options.get("context_length", 4096)), slots=self._slots, manifest=manifest())

    def _learn(self, tokens: list[int]) -> None:
        for at, token in enumerate(tokens):
            for length in range(min(ORDER, at) + 1):
                self._followers[tuple(tokens[at - length : at])][token] += 1

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._running), steps=self._steps)

    def has_capacity(self) -> bool:
        return len(self._running) < self._slots

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        self._running[id] = Sequence(prompt, sampling)

    def remove(self, id: int) -> None:
        self._running.pop(id, None)

    def step(self) -> StepOutput:
        self._steps += 1
        outs = [self._next(id, sequence) for id, sequence in self._running.items()]
        for out in outs:
            if out.finish is not None:
                self.remove(out.id)
        return StepOutput(outs)

    def _next(self, id: int, sequence: Sequence) -> TokenOut:
        sampling = sequence.sampling
        logits = self._logits(sequence.tokens)
        logprobs = _logprobs(logits)
        token = _sample(_penalised(logits, sequence), sampling, sequence.random)
        sequence.tokens.append(token)
        done = len(sequence.tokens) - sequence.prompt_length
        out = TokenOut(id, token)
        if token == END:
            out.finish = "stop"
        elif done >= sampling.max_tokens:
            out.finish = "length"
        if sampling.logprobs is not None:
            top = sorted(logprobs.items(), key=lambda item: -item[1])[: sampling.logprobs]
            out.logprobs = TokenLogprobs(logprobs.get(token, -100.0), top)
        return out

    def _logits(self, tokens: list[int]) -> dict[int, float]:
        """Log-counts of what followed the longest context that the text has; every byte stays possible, barely."""
        for length in range(min(ORDER, len(tokens)), -1, -1):
            counts = self._followers.get(tuple(tokens[len(tokens) - length :]))
            if counts:
                break
        logits = dict.fromkeys(range(32, 127), -12.0)
        logits.update({token: math.log(count) for token, count in (counts or {}).items()})
        return logits


def _logprobs(logits: dict[int, float]) -> dict[int, float]:
    total = math.log(sum(math.exp(value) for value in logits.values()))
    return {token: value - total for token, value in logits.items()}


def _penalised(logits: dict[int, float], sequence: Sequence) -> dict[int, float]:
    """`logit_bias`, then the penalties, over a copy."""
    sampling = sequence.sampling
    logits = dict(logits)
    if sampling.ignore_eos:
        logits.pop(END, None)
    for token, bias in sampling.logit_bias.items():
        logits[token] = logits.get(token, -12.0) + bias
    written = Counter(sequence.tokens[sequence.prompt_length :])
    for token in set(sequence.tokens) & set(logits):
        factor = sampling.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        if token in written:
            logits[token] -= sampling.presence_penalty + sampling.frequency_penalty * written[token]
    return logits


def _sample(logits: dict[int, float], sampling: SamplingParams, chooser: random.Random) -> int:
    """Temperature, then top_k, top_p and min_p."""
    ranked = sorted(logits.items(), key=lambda item: (-item[1], item[0]))
    if sampling.temperature == 0:
        return ranked[0][0]
    best = ranked[0][1]
    weights = [(token, math.exp((value - best) / sampling.temperature)) for token, value in ranked]
    weights = weights[: sampling.top_k or None]
    total, kept, mass = sum(weight for _, weight in weights), [], 0.0
    for token, weight in weights:
        if kept and (mass >= sampling.top_p * total or weight < sampling.min_p):
            break
        kept.append((token, weight))
        mass += weight
    return chooser.choices([token for token, _ in kept], [weight for _, weight in kept])[0]
