"""`EngineSlots`: the parts of requests within an `ApiEngine` or waiting for it. `ApiService` and `ApiPoolingService` each keep one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from msgspec import Struct

from xi_core.engine.base import ApiEngine, ApiRequest, ApiSink
from xi_core.engine.turns import Turns
from xi_core.errors import EngineError, ErrorBody, InvalidRequest, Unavailable, XiError
from xi_core.serving.loop_queue import LoopQueue
from xi_core.serving.service import Run

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Run)


class Part(Generic[R]):
    """What of a request goes to the engine as one."""

    __slots__ = ("body", "open", "run", "started")

    def __init__(self, body: ApiRequest, run: R) -> None:
        self.body, self.run = body, run
        self.started = False
        self.open = True

    @property
    def id(self) -> int:
        """Of the part, within the engine."""
        return self.body.id


P = TypeVar("P", bound=Part[Any])


class Done(Struct):
    """A part has ended well."""

    id: int


class Failed(Struct):
    """A part has ended badly."""

    id: int
    error: ErrorBody


class _Text(Struct):
    """One event of a part."""

    id: int
    data: bytes | str


class _Sink(ApiSink):
    """Carries an engine's events from its threads to the loop."""

    def __init__(self, queue: LoopQueue[_Text | Done | Failed]) -> None:
        self._queue = queue

    def event(self, id: int, data: bytes | str) -> None:
        self._queue.put(_Text(id, data))

    def done(self, id: int) -> None:
        self._queue.put(Done(id))

    def failed(self, id: int, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        default = InvalidRequest.code if status < 500 else EngineError.code
        again = 1.0 if status == Unavailable.status else None
        self._queue.put(Failed(id, ErrorBody(message=message, status=status, param=param, code=code or default, retry_after=again)))

    def hand_over(self, engine: ApiEngine, request: ApiRequest) -> None:
        """Submit a request. What `submit` raises comes as its failure, as everything else does, so that its slot is freed."""
        try:
            engine.submit(request, self)
        except XiError as error:
            self.failed(request.id, error.status, error.message, error.param, error.code)
        except Exception:
            log.exception("the engine did not take request %d", request.id)
            self.failed(request.id, 500, "the engine did not take this request; the replica's log has the details")


class EngineSlots(Generic[P]):
    """Never has more parts in the engine at once than that has slots. On the loop.

    `event` and `ended` are called with what comes of a part that wasn't stopped, each by `attempt`, which ends the request when they raise.
    """

    def __init__(
        self,
        engine: ApiEngine,
        slots: int,
        attempt: Callable[..., None],
        event: Callable[[P, bytes | str], None],
        ended: Callable[[P, Done | Failed], None],
    ) -> None:
        self._engine = engine
        self._slots = slots
        self._attempt, self._event, self._ended = attempt, event, ended
        self._parts: dict[int, P] = {}
        self._waiting: Turns[P] = Turns()
        self._busy = 0
        self._sink = _Sink(LoopQueue(asyncio.get_running_loop(), self._take))

    def counts(self) -> tuple[int, int]:
        """Parts in the engine, and parts that wait."""
        return self._busy, len(self._waiting)

    def queue(self, parts: Iterable[P]) -> None:
        """Let all parts of one request wait for `admit`, one behind the other; between two of them others that wait have their turn."""
        for part in parts:
            self._parts[part.id] = part
            part.run.parts.append(part.id)
            self._waiting.add(part.run.parts[0], part.id, part)

    def admit(self) -> None:
        """Give the engine as many parts as it has room for."""
        while self._waiting and self._busy < self._slots:
            part = self._waiting.pop()
            part.started = True
            self._busy += 1
            self._sink.hand_over(self._engine, part.body)

    def stop(self, id: int) -> None:
        """A waiting part goes at once; a running one keeps its slot until the engine says that it has stopped."""
        part = self._parts[id]
        part.open = False
        if part.started:
            self._engine.abort(id)
            return
        del self._parts[id]
        self._waiting.discard(id)

    def _take(self, item: _Text | Done | Failed) -> None:
        part = self._parts.get(item.id)
        if part is None:
            return
        if isinstance(item, _Text):
            if part.open:
                self._attempt(part.run, self._event, part, item.data)
            return
        del self._parts[part.id]
        self._busy -= 1
        if part.open:
            part.run.parts.remove(part.id)
            self._attempt(part.run, self._ended, part, item)
        self.admit()
