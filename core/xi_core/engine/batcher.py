"""Batcher: steps a `TokenEngine` on one thread of its own and hands each step's output over as one batch.

The serving layer talks to it from the replica's loop; the engine sees only the batcher's thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from xi_core.engine.base import SamplingParams, SequenceError, StepOutput, TokenEngine
from xi_core.errors import XiError


class _Add(Struct):
    id: int
    prompt: list[int]
    sampling: SamplingParams


class _Remove(Struct):
    id: int


class _Stop(Struct):
    pass


class Batcher:
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
        self._engine = engine
        self._on_step = on_step
        self._on_failure = on_failure
        self._interval = interval
        self._inbox: queue.SimpleQueue[_Add | _Remove | _Stop] = queue.SimpleQueue()
        self._waiting: deque[_Add] = deque()
        self._running: set[int] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="xi-batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        """Queue a sequence; it joins the batch when the engine has capacity. Any thread."""
        self._inbox.put(_Add(id, prompt, sampling))

    def remove(self, id: int) -> None:
        """Drop a sequence, waiting or running, before the next step. Any thread; unknown ids are ignored."""
        self._inbox.put(_Remove(id))

    def stop(self, timeout: float) -> None:
        """End the thread after the step that runs now, waiting for it at most `timeout` seconds."""
        self._inbox.put(_Stop())
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._collect():
                errors = self._admit()
                output = self._engine.step() if self._running else StepOutput([])
                output.errors.extend(errors)
                for token in output.tokens:
                    if token.finish is not None:
                        self._running.discard(token.id)
                for error in output.errors:
                    self._running.discard(error.id)
                self._on_step(output)
        except BaseException as error:  # whatever an engine raises ends this replica, and its requests are told
            self._on_failure(error)

    def _collect(self) -> bool:
        """Take what has come, waiting for it when there is nothing to do. False when it is time to stop."""
        if not self._running and not self._waiting and not self._stopping:
            self._take(self._inbox.get())
            self._fill()
        while not self._stopping:
            try:
                self._take(self._inbox.get_nowait())
            except queue.Empty:
                break
        return not self._stopping

    def _fill(self) -> None:
        """After idleness, wait a moment for others to come."""
        deadline = time.monotonic() + self._interval
        while self._waiting and not self._stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            try:
                self._take(self._inbox.get(timeout=left))
            except queue.Empty:
                return

    def _take(self, message: _Add | _Remove | _Stop) -> None:
        if isinstance(message, _Add):
            self._waiting.append(message)
        elif isinstance(message, _Remove):
            self._drop(message.id)
        else:
            self._stopping = True

    def _drop(self, id: int) -> None:
        if id in self._running:
            self._running.discard(id)
            self._engine.remove(id)
        else:
            self._waiting = deque(item for item in self._waiting if item.id != id)

    def _admit(self) -> list[SequenceError]:
        errors: list[SequenceError] = []
        while self._waiting and self._engine.has_capacity():
            item = self._waiting.popleft()
            try:
                self._engine.add(item.id, item.prompt, item.sampling)
            except XiError as error:
                errors.append(SequenceError(item.id, error.message, error.status, error.param))
            else:
                self._running.add(item.id)
        return errors
