"""`ApiPoolingService`: `/v1/embeddings` and `/v1/rerank` over an `ApiEngine`. Runs on the replica's loop.

The engine gets an OpenAI or rerank body of a few inputs at a time, and gives the whole answer to it as one event.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import logging
from collections import deque
from typing import Any

import msgspec
from msgspec import Struct, field

from xi_core.api.embeddings import RerankRequest
from xi_core.engine.base import ApiEngine, ApiRequest, LoadedModel
from xi_core.engine.pooling_batcher import Value
from xi_core.errors import EngineError, XiError
from xi_core.serving.events import Done, Failed, Sink, Text
from xi_core.serving.loop_queue import LoopQueue
from xi_core.serving.pooling import PoolingRun, PoolingService
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK, PoolingJob
from xi_core.wire.plan import LaunchPlan

log = logging.getLogger(__name__)

MOST_INPUTS = 32
"""Inputs in one body to the engine: between two, other requests have their turn, and aborts take effect."""
MOST_TEXT = 32 * 1024
"""Characters, or four times the token ids, in one body, where it has more than one input."""


class _Vector(Struct):
    embedding: str
    index: int = 0


class _Score(Struct):
    index: int
    relevance_score: float


class _Usage(Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Answer(Struct):
    data: list[_Vector] = field(default_factory=list)
    results: list[_Score] = field(default_factory=list)
    usage: _Usage = field(default_factory=_Usage)


_decode = msgspec.json.Decoder(_Answer).decode


class _Part:
    """A few inputs of a request, within the engine or waiting for it."""

    __slots__ = ("body", "count", "first", "id", "open", "run", "started")

    def __init__(self, body: ApiRequest, run: PoolingRun, first: int, count: int) -> None:
        self.id = body.id
        self.body, self.run, self.first, self.count = body, run, first, count
        self.started = False
        self.open = True


class ApiPoolingService(PoolingService):
    """Serves over an API engine, never more bodies at once than it has slots; requests take turns. Call on the loop."""

    def __init__(self, plan: LaunchPlan, engine: ApiEngine, model: LoadedModel) -> None:
        super().__init__(plan, engine, model)
        self._api = engine
        self._ids = itertools.count(1)
        self._parts: dict[int, _Part] = {}
        self._waiting: deque[deque[_Part]] = deque()
        self._busy_slots = 0
        self._sink = Sink(LoopQueue(asyncio.get_running_loop(), self._take))

    def _counts(self) -> tuple[int, int]:
        return self._busy_slots, sum(len(parts) for parts in self._waiting)

    def _start(self, run: PoolingRun) -> None:
        parts: deque[_Part] = deque()
        for first, count in pieces(run.job):
            body = ApiRequest(id=next(self._ids), route=_route(run.job), body=engine_body(run.job, first, count))
            part = _Part(body, run, first, count)
            self._parts[part.id] = part
            run.parts.append(part.id)
            parts.append(part)
        self._waiting.append(parts)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._busy_slots < self.model.slots:
            parts = self._waiting.popleft()
            part = parts.popleft()
            if parts:
                self._waiting.append(parts)
            part.started = True
            self._busy_slots += 1
            self._sink.hand_over(self._api, part.body)

    def _stop_part(self, part: int) -> None:
        """A waiting part goes at once; a running one keeps its slot until the engine says that it has stopped."""
        found = self._parts[part]
        found.open = False
        if found.started:
            self._api.abort(part)
            return
        del self._parts[part]
        for parts in self._waiting:
            if found in parts:
                parts.remove(found)
                break
        self._waiting = deque(parts for parts in self._waiting if parts)

    def _take(self, item: Text | Done | Failed) -> None:
        part = self._parts.get(item.id)
        if part is None:
            return
        if isinstance(item, Text):
            if part.open:
                self._attempt(part.run, self._event, part, item.data)
            return
        del self._parts[part.id]
        self._busy_slots -= 1
        if part.open:
            part.run.parts.remove(part.id)
            self._attempt(part.run, self._ended, part, item)
        self._admit()

    def _event(self, part: _Part, data: bytes | str) -> None:
        try:
            answer = _decode(data)
            values: dict[int, Value] = {entry.index: base64.b64decode(entry.embedding, validate=True) for entry in answer.data}
        except (msgspec.DecodeError, binascii.Error) as error:
            raise EngineError(f"the engine sent an answer that can't be read: {error}") from None
        values.update((entry.index, entry.relevance_score) for entry in answer.results)
        if set(values) != set(range(part.count)):
            raise EngineError(f"the engine sent {len(values)} values for {part.count} inputs")
        part.run.prompt_tokens += answer.usage.prompt_tokens or answer.usage.total_tokens
        for index, value in values.items():
            self._value(part.run, part.first + index, value)

    def _ended(self, part: _Part, item: Done | Failed) -> None:
        if isinstance(item, Failed):
            raise XiError.from_body(item.error)
        if part.run.parts:
            return
        if part.run.left:
            raise EngineError("the engine ended without an answer")
        self._complete(part.run)


def pieces(job: PoolingJob) -> list[tuple[int, int]]:
    """A job's inputs in pieces of bounded size: each piece's first input, and how many it has."""
    sizes = [len(text) for text in job.texts] or [4 * len(ids) for ids in job.ids]
    found: list[tuple[int, int]] = []
    first = total = 0
    for index, size in enumerate(sizes):
        if index > first and (index - first == MOST_INPUTS or total + size > MOST_TEXT):
            found.append((first, index - first))
            first, total = index, 0
        total += size
    return [*found, (first, len(sizes) - first)]


def _route(job: PoolingJob) -> str:
    return RERANK if isinstance(job.request, RerankRequest) else EMBEDDINGS


def engine_body(job: PoolingJob, first: int, count: int) -> dict[str, Any]:
    """The body for one piece."""
    if isinstance(job.request, RerankRequest):
        return {"query": job.request.query, "documents": job.texts[first : first + count]}
    inputs: list[Any] = job.texts or job.ids
    return {"input": inputs[first : first + count], "encoding_format": "base64"}
