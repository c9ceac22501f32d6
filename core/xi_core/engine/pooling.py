"""The interfaces of engines that turn texts into vectors (`EmbeddingEngine`) or rate documents for a query (`RerankEngine`).

xi validates, batches over all requests, counts, cuts vectors to `dimensions` and writes the answer. The engine encodes text and runs one
batch at a time.
"""

from __future__ import annotations

from abc import abstractmethod

from msgspec import Struct

from xi_core.engine.base import Engine


class PoolingInput(Struct):
    """One encoded input: token ids, and for a pair of texts the segment (0 or 1) of each."""

    ids: list[int]
    type_ids: list[int] | None = None


class PoolingEngine(Engine):
    """What both kinds share. `LoadedModel.slots` is the most inputs of one batch, `context_length` the most tokens of one input.

    `encode` and `encode_pairs` are called on the replica's loop, or for much text on a thread beside it; `embed` and `score` on the
    batcher's thread. What `embed` or `score` raises as an `XiError` ends the requests of that batch; anything else ends the replica.
    """

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Ids are below this."""

    @property
    def batch_tokens(self) -> int:
        """Most tokens of one batch, padding counted; a single input may have more."""
        return 8192


class EmbeddingEngine(PoolingEngine):
    """Turns texts into vectors. Serves `/v1/embeddings`."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """Numbers in a vector."""

    @abstractmethod
    def encode(self, texts: list[str]) -> list[PoolingInput]:
        """Token ids of each text, with the special tokens that the model wants around it; not cut to any length."""

    @abstractmethod
    def embed(self, inputs: list[PoolingInput]) -> list[bytes]:
        """Each input's vector, of length 1: `dimensions` 32-bit floats, little endian. What else is in the batch must not change it."""


class RerankEngine(PoolingEngine):
    """Rates how relevant documents are to a query. Serves `/v1/rerank`."""

    @abstractmethod
    def encode_pairs(self, query: str, documents: list[str]) -> list[PoolingInput]:
        """The query with each document, encoded as the model wants; not cut to any length."""

    @abstractmethod
    def score(self, inputs: list[PoolingInput]) -> list[float]:
        """Each pair's relevance: the higher, the more relevant. What else is in the batch must not change it."""
