"""`ApiPoolingService`: `/v1/embeddings` and `/v1/rerank` over an `ApiEngine`. Runs on the replica's loop.

The engine gets an OpenAI or rerank body of a few inputs at a time, and gives the whole answer to it as one event.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from xi_core.api.embeddings import RerankRequest
from xi_core.engine.base import ApiEngine, ApiRequest, LoadedModel
from xi_core.engine.pooling_batcher import Value
from xi_core.errors import EngineError, ErrorBody, XiError
from xi_core.serving.engine_slots import Done, EngineSlots, Failed, Part
from xi_core.serving.pooling import PoolingRun, PoolingService
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK, PoolingJob
from xi_core.wire.plan import LaunchPlan

MOST_INPUTS = 32
"""Inputs in one body to the engine: between two, other requests have their turn, and aborts take effect."""
MOST_TEXT = 32 * 1024
"""Characters, or four times the token ids, in one body, where it has more than one input."""


_PLACE = re.compile(r"(?:input|documents)\[(\d+)\]")


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


class _Part(Part[PoolingRun]):
    """A few inputs of a request."""

    __slots__ = ("count", "first")

    def __init__(self, body: ApiRequest, run: PoolingRun, first: int, count: int) -> None:
        super().__init__(body, run)
        self.first, self.count = first, count


class ApiPoolingService(PoolingService):
    """Serves over an API engine, never more bodies at once than it has slots; requests take turns. Call on the loop."""

    def __init__(self, plan: LaunchPlan, engine: ApiEngine, model: LoadedModel) -> None:
        super().__init__(plan, engine, model)
        self._ids = itertools.count(1)
        self._slots: EngineSlots[_Part] = EngineSlots(engine, model.slots, self._attempt, self._event, self._ended)

    def _counts(self) -> tuple[int, int]:
        return self._slots.counts()

    def _start(self, run: PoolingRun) -> None:
        parts: list[_Part] = []
        for first, count in pieces(run.job):
            body = ApiRequest(id=next(self._ids), route=_route(run.job), body=engine_body(run.job, first, count))
            parts.append(_Part(body, run, first, count))
        self._slots.queue(parts)
        self._slots.admit()

    def _stop_part(self, part: int) -> None:
        self._slots.stop(part)

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
            raise XiError.from_body(_blamed(part, item.error))
        if part.run.parts:
            return
        if part.run.left:
            raise EngineError("the engine ended without an answer")
        self._complete(part.run)


def _blamed(part: _Part, error: ErrorBody) -> ErrorBody:
    """`error`, with the input that it names by its place in the engine's body named by that in the request."""
    found = _PLACE.fullmatch(error.param or "")
    if found is None:
        return error
    place = part.run.job.place(part.first + int(found[1]))
    return replace(error, message=error.message.replace(found[0], place, 1), param=place)


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
