"""PoolingBatcher: runs the inputs of many requests through a pooling engine, on one thread of its own, in batches of like lengths."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from msgspec import Struct

from xi_core.engine.inbox_thread import InboxThread
from xi_core.engine.pooling import PoolingInput
from xi_core.errors import Unavailable, XiError

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


class _Waiting:
    """A request's inputs that wait, the shortest first: the longest is taken first."""

    def __init__(self, id: int, inputs: list[PoolingInput], work: Work) -> None:
        self.id = id
        self.inputs = inputs
        self.work = work
        self.order = sorted(range(len(inputs)), key=self.length_of)

    def length_of(self, index: int) -> int:
        """Tokens of an input."""
        return len(self.inputs[index].ids)


class PoolingBatcher(InboxThread):
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
        super().__init__("xi-pooling-batcher", on_failure, interval)
        self._most = most
        self._budget = budget
        self._on_output = on_output
        self._waiting: dict[int, _Waiting] = {}

    def submit(self, id: int, inputs: list[PoolingInput], work: Work) -> None:
        """Queue a request's inputs, of which there is at least one; `work` is the engine's method for them. Any thread."""
        self._post(lambda: self._add(_Waiting(id, inputs, work)))

    def remove(self, id: int) -> None:
        """Drop what of a request still waits. Any thread; unknown ids are ignored."""
        self._post(lambda: self._drop(id))

    def _has_work(self) -> bool:
        return bool(self._waiting)

    def _work(self) -> None:
        work, batch = self._next_batch()
        try:
            output = self._done(work, batch)
        except BaseException:
            self._take_in()
            unbegun = [id for id, request in self._waiting.items() if len(request.order) == len(request.inputs)]
            self._on_output(BatchOutput([], unbegun, Unavailable("the engine has failed before it took this in", retry_after=1.0)))
            raise
        self._on_output(output)

    def _add(self, request: _Waiting) -> None:
        self._waiting[request.id] = request

    def _drop(self, id: int) -> None:
        self._waiting.pop(id, None)

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
