"""Batcher: steps a `TokenEngine` on one thread of its own and hands each step's output over as one batch.

The serving layer talks to it from the replica's loop; the engine sees only the batcher's thread.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from xi_core.engine.base import SamplingParams, SequenceError, StepOutput, TokenEngine
from xi_core.engine.inbox_thread import InboxThread
from xi_core.engine.turns import Turns
from xi_core.errors import XiError


class _Sequence(Struct):
    id: int
    prompt: list[int]
    sampling: SamplingParams


class Batcher(InboxThread):
    """`on_step` and `on_failure` are called on the batcher's thread; both must only hand over.

    `interval`: longest wait, in seconds, for more sequences to come when the engine was idle, so that they are prefilled together.
    """

    def __init__(
        self,
        engine: TokenEngine,
        on_step: Callable[[StepOutput], None],
        on_failure: Callable[[BaseException], None],
        interval: float = 0.0,
    ) -> None:
        super().__init__("xi-batcher", on_failure, interval)
        self._engine = engine
        self._on_step = on_step
        self._waiting: Turns[_Sequence] = Turns()
        self._running: set[int] = set()

    def submit(self, id: int, prompt: list[int], sampling: SamplingParams, request: int | None = None) -> None:
        """Queue a sequence; it joins the batch when the engine has capacity. Any thread.

        `request`: the first sequence of the same request, where it has several. Requests take turns.
        """
        sequence = _Sequence(id, prompt, sampling)
        self._post(lambda: self._waiting.add(id if request is None else request, id, sequence))

    def remove(self, id: int) -> None:
        """Drop a sequence, waiting or running, before the next step. Any thread; unknown ids are ignored."""
        self._post(lambda: self._drop(id))

    def _has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def _work(self) -> None:
        try:
            errors = self._admit()
            output = self._engine.step() if self._running else StepOutput([])
        except BaseException:
            self._take_in()
            self._on_step(StepOutput([], unbegun=[self._waiting.pop().id for _ in range(len(self._waiting))]))
            raise
        output.errors.extend(errors)
        for token in output.tokens:
            if token.finish is not None:
                self._running.discard(token.id)
        for error in output.errors:
            self._running.discard(error.id)
        self._on_step(output)

    def _drop(self, id: int) -> None:
        if id in self._running:
            self._running.discard(id)
            self._engine.remove(id)
        else:
            self._waiting.discard(id)

    def _admit(self) -> list[SequenceError]:
        errors: list[SequenceError] = []
        while self._waiting and self._engine.has_capacity():
            item = self._waiting.pop()
            try:
                self._engine.add(item.id, item.prompt, item.sampling)
            except XiError as error:
                errors.append(SequenceError(item.id, error.message, error.status, error.param))
            else:
                self._running.add(item.id)
        return errors
