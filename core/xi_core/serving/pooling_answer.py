"""Answers of `/v1/embeddings` and `/v1/rerank`: vectors and scores in, the body's bytes out. Any thread."""

from __future__ import annotations

import base64
import math
import struct
import uuid
from collections.abc import Sequence

import msgspec

from xi_core.api.embeddings import Document, EmbeddingRequest, PoolingUsage, RerankAnswer, RerankRequest, RerankResult
from xi_core.errors import EngineError, InvalidRequest
from xi_core.serving.pooling_request import PoolingJob

_encode = msgspec.json.encode


def body_of(job: PoolingJob, values: Sequence[bytes | float], model: str, tokens: int) -> bytes:
    """The whole answer. Raises `EngineError` for numbers that are not finite, and as `check_dimensions`."""
    usage = PoolingUsage(prompt_tokens=tokens, total_tokens=tokens)
    if isinstance(job.request, RerankRequest):
        return _ranking(job, job.request, [value for value in values if isinstance(value, float)], model, usage)
    return _vectors(job.request, [value for value in values if isinstance(value, bytes)], model, usage)


def check_dimensions(request: EmbeddingRequest, most: int) -> None:
    """Raises `InvalidRequest` for more dimensions than the model's vectors have."""
    if request.dimensions is not None and request.dimensions > most:
        raise InvalidRequest(f"dimensions: {request.dimensions} are more than the {most} of this model", param="dimensions")


def _vectors(request: EmbeddingRequest, vectors: list[bytes], model: str, usage: PoolingUsage) -> bytes:
    """Spliced, one vector at a time: a request may ask for millions of numbers, and other threads want to run as well."""
    parts = []
    for index, vector in enumerate(vectors):
        numbers = _unpacked(vector)
        check_dimensions(request, len(numbers))
        if request.dimensions is not None and request.dimensions < len(numbers):
            numbers = _cut(numbers, request.dimensions)
        if request.encoding_format == "base64":
            data = b'"' + base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)) + b'"'
        else:
            data = _encode(numbers)
        parts.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (index, data))
    head, tail = _encode({"object": "list"})[:-1], _encode({"model": model, "usage": usage})[1:]
    return head + b',"data":[' + b",".join(parts) + b"]," + tail


def _unpacked(vector: bytes) -> tuple[float, ...]:
    numbers = struct.unpack(f"<{len(vector) // 4}f", vector)
    if not math.isfinite(sum(numbers)):
        raise _not_finite()
    return numbers


def _cut(numbers: tuple[float, ...], dimensions: int) -> tuple[float, ...]:
    """The first numbers, brought to length 1 again."""
    kept = numbers[:dimensions]
    length = math.hypot(*kept)
    return tuple(number / length for number in kept) if length else kept


def _ranking(job: PoolingJob, request: RerankRequest, scores: list[float], model: str, usage: PoolingUsage) -> bytes:
    if not math.isfinite(sum(scores)):
        raise _not_finite()
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    results = [RerankResult(index=index, relevance_score=scores[index]) for index in order]
    if request.return_documents:
        for result in results:
            result.document = Document(text=job.texts[result.index])
    return _encode(RerankAnswer(id=f"rerank-{uuid.uuid4().hex}", model=model, results=results, usage=usage))


def _not_finite() -> EngineError:
    return EngineError("the model gave numbers that are not finite; try dtype float32 or bfloat16")
