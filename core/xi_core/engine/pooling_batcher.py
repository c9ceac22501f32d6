"""PoolingBatcher: runs the inputs of many requests through a pooling engine, on one thread of its own, in batches of like lengths."""

from __future__ import annotations

import queue
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from msgspec import Struct

from xi_core.engine.pooling import PoolingInput
from xi_core.errors import XiError

Value = bytes | float
"""What becomes of an input: a vector or a score."""
Work = Callable[[list[PoolingInput]], Sequence[Value]]

SHORT = 32
"""Tokens. Inputs up to this length share a batch whatever their lengths: their padding costs little."""


class BatchOutput(Struct):
    """What one batch gave: (request, index of its input, value); or the error that ended the requests named in `failed`."""

    values: list[tuple[int, int, Value]]
    failed: list[int]
    error: XiError | None = None


class _Add(Struct):
    id: int
    inputs: list[PoolingInput]
    work: Work


class _Remove(Struct):
    id: int


class _Stop(Struct):
    pass


class _Waiting:
    """A request's inputs that wait, the shortest first: the longest is taken first."""

    def __init__(self, request: _Add) -> None:
        self.id = request.id
        self.inputs = request.inputs
        self.work = request.work
        self.order = sorted(range(len(request.inputs)), key=self.length_of)

    def length_of(self, index: int) -> int:
        """Tokens of an input."""
        return len(self.inputs[index].ids)


class PoolingBatcher:
    """`on_output` and `on_failure` are called on the batcher's thread; both must only hand over.

    A batch has at most `most` inputs and `budget` tokens, padding counted. Requests take turns at being the one whose longest input sets a
    batch's width, so that a large request doesn't hold up the others; what still fits is filled with inputs of any request that are at
    least half as long. `interval`: longest wait, in seconds, for more requests to come when there was nothing to do.
    """

    def __init__(
        self,
        most: int,
        budget: int,
        on_output: Callable[[BatchOutput], None],
        on_failure: Callable[[BaseException], None],
        interval: float = 0.0,
    ) -> None:
        self._most = most
        self._budget = budget
        self._on_output = on_output
        self._on_failure = on_failure
        self._interval = interval
        self._inbox: queue.SimpleQueue[_Add | _Remove | _Stop] = queue.SimpleQueue()
        self._waiting: dict[int, _Waiting] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="xi-pooling-batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, id: int, inputs: list[PoolingInput], work: Work) -> None:
        """Queue a request's inputs, of which there is at least one; `work` is the engine's method for them. Any thread."""
        self._inbox.put(_Add(id, inputs, work))

    def remove(self, id: int) -> None:
        """Drop what of a request still waits. Any thread; unknown ids are ignored."""
        self._inbox.put(_Remove(id))

    def stop(self, timeout: float) -> None:
        """End the thread after the batch that runs now, waiting for it at most `timeout` seconds."""
        self._inbox.put(_Stop())
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._collect():
                work, batch = self._next_batch()
                self._on_output(self._done(work, batch))
        except BaseException as error:  # whatever an engine raises ends this replica, and its requests are told
            self._on_failure(error)

    def _done(self, work: Work, batch: list[tuple[int, int, PoolingInput]]) -> BatchOutput:
        try:
            values = work([input for _, _, input in batch])
        except XiError as error:
            failed = list(dict.fromkeys(id for id, _, _ in batch))
            for id in failed:
                self._waiting.pop(id, None)
            return BatchOutput([], failed, error)
        return BatchOutput([(id, index, value) for (id, index, _), value in zip(batch, values, strict=True)], [])

    # ---- choosing a batch -----------------------------------------------------------------------

    def _next_batch(self) -> tuple[Work, list[tuple[int, int, PoolingInput]]]:
        first = next(iter(self._waiting.values()))
        width, work = first.length_of(first.order[-1]), first.work
        room = max(1, min(self._most, self._budget // max(width, 1)))
        batch: list[tuple[int, int, PoolingInput]] = []
        for request in list(self._waiting.values()):
            if request.work == work:
                self._take_from(request, width, room - len(batch), batch)
            if len(batch) == room:
                break
        if first.order:  # it goes to the end: the others have their turn
            self._waiting[first.id] = self._waiting.pop(first.id)
        return work, batch

    def _take_from(self, request: _Waiting, width: int, room: int, batch: list[tuple[int, int, PoolingInput]]) -> None:
        """Move up to `room` inputs that suit a batch of this width, the longest that do."""
        least = 0 if width <= SHORT else (width + 1) // 2
        end = bisect_right(request.order, width, key=request.length_of)
        start = max(bisect_left(request.order, least, key=request.length_of), end - room)
        batch.extend((request.id, index, request.inputs[index]) for index in request.order[start:end])
        del request.order[start:end]
        if not request.order:
            del self._waiting[request.id]

    # ---- what comes -----------------------------------------------------------------------------

    def _collect(self) -> bool:
        """Take what has come, waiting for it when there is nothing to do. False when it is time to stop."""
        while not self._stopping:
            if not self._waiting:
                self._take(self._inbox.get())
                self._fill()
            while not self._inbox.empty():  # nobody else takes from it
                self._take(self._inbox.get())
            if self._waiting and not self._stopping:
                return True
        return False

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
            self._waiting[message.id] = _Waiting(message)
        elif isinstance(message, _Remove):
            self._waiting.pop(message.id, None)
        else:
            self._stopping = True
