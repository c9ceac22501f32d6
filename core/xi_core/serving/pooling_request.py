"""From a body of `/v1/embeddings` or `/v1/rerank` to a `PoolingJob`: the only validation that it gets. Runs in the replica."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct, field

from xi_core.api.body import decode_request
from xi_core.api.embeddings import MAX_INPUTS, EmbeddingRequest, RerankRequest
from xi_core.errors import InvalidRequest, NotFound
from xi_core.serving.request import LONGEST_TOKEN, check_manifest, kind_of_all
from xi_core.wire.manifest import Manifest

EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"

_decode: dict[str, Callable[[bytes], EmbeddingRequest | RerankRequest]] = {
    EMBEDDINGS: msgspec.json.Decoder(EmbeddingRequest).decode,
    RERANK: msgspec.json.Decoder(RerankRequest).decode,
}


class PoolingJob(Struct, kw_only=True):
    """A validated request: texts (inputs or documents), or in their place lists of token ids."""

    request: EmbeddingRequest | RerankRequest
    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many vectors or scores are asked for."""
        return len(self.texts) or len(self.ids)

    def place(self, index: int) -> str:
        """The field that holds an input, for errors."""
        if isinstance(self.request, RerankRequest):
            return f"documents[{index}]"
        given = self.request.input
        return "input" if isinstance(given, str) or isinstance(given[0], int) else f"input[{index}]"

    def least_tokens(self) -> list[int]:
        """Tokens that each input has at the very least: an answer that is quick to give."""
        query = len(self.request.query) if isinstance(self.request, RerankRequest) else 0
        return [len(ids) for ids in self.ids] or [(query + len(text)) // LONGEST_TOKEN for text in self.texts]


def parse_pooling(route: str, body: bytes, manifest: Manifest, engine: str) -> PoolingJob:
    """Validate `body` by the API and by what the loaded model honours. Raises `InvalidRequest`, `UnsupportedField` or `NotFound`."""
    if route not in _decode or not manifest.serves(route):
        raise NotFound(f"this model does not serve {route}; it serves: {', '.join(manifest.endpoints)}", param="model")
    request = decode_request(_decode[route], body)
    check_manifest(request, manifest.endpoints[route], engine)
    if isinstance(request, RerankRequest):
        texts = [document if isinstance(document, str) else document.text for document in request.documents]
        return PoolingJob(request=request, texts=texts)
    return _embedding_job(request)


def _embedding_job(request: EmbeddingRequest) -> PoolingJob:
    given: Any = request.input
    if isinstance(given, str):
        return PoolingJob(request=request, texts=[given])
    kind = kind_of_all("input", given)
    if kind is int:
        return PoolingJob(request=request, ids=[given])
    if len(given) > MAX_INPUTS:
        raise InvalidRequest(f"input: {len(given)} inputs are more than the {MAX_INPUTS} that one request may have", param="input")
    return PoolingJob(request=request, texts=given) if kind is str else PoolingJob(request=request, ids=given)
