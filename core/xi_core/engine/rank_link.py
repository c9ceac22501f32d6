"""Sharded token engines: rank 0 serves, and the other ranks do what it does, step by step.

Every rank holds a part of the model and computes its part of each step, so all must see the same batch. Rank 0 tells the others what it
added and removed since the last step, then all step. Which tokens come out is the same everywhere: the parts are joined before the
logits, and every sequence samples with a seed that all know. The followers check that against rank 0's tokens of the step before.
"""

from __future__ import annotations

import logging
import secrets
import threading
from abc import ABC, abstractmethod
from typing import Any

import msgspec
from msgspec import Struct, field

from xi_core.engine.base import EngineStats, LoadedModel, Progress, SamplingParams, StepOutput, TokenEngine, Tokenizer
from xi_core.engine.grammar import Grammar
from xi_core.errors import EngineError, XiError
from xi_core.wire.plan import LaunchPlan

log = logging.getLogger(__name__)


class RankLink(ABC):
    """Carries messages from rank 0 to all others. An engine brings it: it knows how its library's ranks talk."""

    @abstractmethod
    def broadcast(self, message: bytes) -> bytes:
        """On rank 0: send `message` to all others. On these: wait for rank 0's next message. Answers it. Raises when a rank is lost."""


class Added(Struct, tag="add", array_like=True):
    """A sequence joined the batch."""

    id: int
    prompt: list[int]
    sampling: SamplingParams


class Removed(Struct, tag="remove", array_like=True):
    """A sequence left it."""

    id: int


class Step(Struct, array_like=True):
    """What changed since the last step, and that step's tokens and the sequences that failed in it; then step.

    `last`: no step follows, rank 0 ends.
    """

    changes: list[Added | Removed] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    last: bool = False
    failed: list[int] = field(default_factory=list)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Step).decode


class Leader(TokenEngine):
    """Rank 0's engine, which takes the others along."""

    def __init__(self, engine: TokenEngine, link: RankLink) -> None:
        self._engine, self._link = engine, link
        self._lost = False
        """A step failed, or hasn't ended: nobody is there to be told that it is over."""
        self._changes: list[Added | Removed] = []
        self._tokens: list[tuple[int, int]] = []
        self._failed: list[int] = []

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        return self._engine.load(plan, progress)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def default_sampling(self) -> dict[str, Any]:
        return self._engine.default_sampling

    def prepare(self, grammar: Grammar) -> None:
        self._engine.prepare(grammar)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def check(self) -> None:
        self._engine.check()

    def has_capacity(self) -> bool:
        return self._engine.has_capacity()

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        if sampling.seed is None and sampling.temperature > 0:
            sampling = msgspec.structs.replace(sampling, seed=secrets.randbits(31))
        self._engine.add(id, prompt, sampling)
        self._changes.append(Added(id, prompt, sampling))

    def remove(self, id: int) -> None:
        self._engine.remove(id)
        self._changes.append(Removed(id))

    def step(self) -> StepOutput:
        self._lost = True
        changes, self._changes = self._changes, []
        try:
            self._link.broadcast(_encode(Step(changes, self._tokens, failed=self._failed)))
        except XiError:
            raise
        except Exception as error:  # of any library that links ranks
            raise EngineError(f"the link to the other ranks failed: {error}") from error
        output = self._engine.step()
        self._tokens, self._failed = _outcome(output)
        self._lost = False
        return output

    def close(self, grace: float) -> None:
        """Tell the other ranks that it is over, unless they are lost, and free everything within `grace` seconds."""
        if not self._lost:
            telling = threading.Thread(target=self._tell_the_end, name="last-word", daemon=True)
            telling.start()
            telling.join(grace)
        self._engine.close(grace)

    def _tell_the_end(self) -> None:
        """On a thread of its own: a rank that has died since makes some links wait."""
        try:
            self._link.broadcast(_encode(Step(last=True)))
        except Exception as error:  # as above
            log.info("the other ranks could not be told that it is over: %s", error)


def follow(engine: TokenEngine, link: RankLink) -> None:
    """Do what rank 0 does until it ends. Raises `EngineError` when this rank no longer computes the same, or what the link raises."""
    tokens, failed = _outcome(StepOutput(tokens=[]))
    while not (step := _decode(link.broadcast(b""))).last:
        if step.tokens != tokens:
            raise EngineError(
                f"this rank and rank 0 computed different tokens ({tokens[:4]} and {step.tokens[:4]}): is all their hardware the same?"
            )
        if step.failed != failed:  # it would have left one batch only
            raise EngineError(
                f"a sequence failed on rank 0 or on this rank only ({step.failed[:4]} and {failed[:4]}): has one less memory?"
            )
        for change in step.changes:
            if isinstance(change, Removed):
                engine.remove(change.id)
            else:
                if change.sampling.grammar is not None:
                    engine.prepare(change.sampling.grammar)
                engine.add(change.id, change.prompt, change.sampling)
        tokens, failed = _outcome(engine.step())


def _outcome(output: StepOutput) -> tuple[list[tuple[int, int]], list[int]]:
    """What must be the same on every rank."""
    return [(token.id, token.token) for token in output.tokens], [error.id for error in output.errors]
