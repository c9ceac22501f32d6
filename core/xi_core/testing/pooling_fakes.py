"""`LetterEngine`: an engine for tests that embeds and reranks, small enough to read. `PoolingKit` is run on it."""

from __future__ import annotations

import math
import struct
import time

from xi_core.engine.base import EngineStats, LoadedModel, Progress
from xi_core.engine.pooling import EmbeddingEngine, PoolingInput, RerankEngine
from xi_core.wire.manifest import pooling_manifest
from xi_core.wire.plan import LaunchPlan

SIZE = 16
CONTEXT = 64
SEPARATOR = 256


class LetterEngine(EmbeddingEngine, RerankEngine):
    """A byte is a token. A vector counts the bytes by their lower four bits; a score is the share of the query's bytes in the document."""

    def __init__(self) -> None:
        self._stats = EngineStats()
        self.batches: list[int] = []
        """Inputs of each batch that it ran."""
        self.pace = 0.0

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        progress("loading", 1.0)
        self.pace = float(plan.options.get("pace", 0.0))
        slots, context = int(plan.options.get("slots", 8)), int(plan.options.get("context_length", CONTEXT))
        return LoadedModel(context_length=context, slots=slots, manifest=pooling_manifest("embeddings", "rerank"))

    def stats(self) -> EngineStats:
        return EngineStats(running=self._stats.running, steps=self._stats.steps)

    @property
    def vocabulary_size(self) -> int:
        return SEPARATOR + 1

    @property
    def batch_tokens(self) -> int:
        return 256

    @property
    def dimensions(self) -> int:
        return SIZE

    def encode(self, texts: list[str]) -> list[PoolingInput]:
        return [PoolingInput(list(text.encode())) for text in texts]

    def encode_pairs(self, query: str, documents: list[str]) -> list[PoolingInput]:
        return [PoolingInput([*query.encode(), SEPARATOR, *document.encode()]) for document in documents]

    def embed(self, inputs: list[PoolingInput]) -> list[bytes]:
        self._step(inputs)
        return [_vector(one.ids) for one in inputs]

    def score(self, inputs: list[PoolingInput]) -> list[float]:
        self._step(inputs)
        return [_score(one.ids) for one in inputs]

    def _step(self, inputs: list[PoolingInput]) -> None:
        self._stats.running = 1
        time.sleep(self.pace)
        self._stats.running = 0
        self._stats.steps += 1
        self.batches.append(len(inputs))


def _vector(ids: list[int]) -> bytes:
    counts = [0.0] * SIZE
    for token in ids:
        counts[token % SIZE] += 1.0
    length = math.hypot(*counts)
    return struct.pack(f"<{SIZE}f", *(count / length for count in counts))


def _score(ids: list[int]) -> float:
    middle = ids.index(SEPARATOR)
    query, document = set(ids[:middle]), set(ids[middle + 1 :])
    return len(query & document) / len(query)
