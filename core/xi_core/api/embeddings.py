"""The embeddings and rerank APIs as structs: what the replica validates and what it answers.

Embeddings are OpenAI's (https://platform.openai.com/docs/api-reference/embeddings); rerank is what Cohere, Jina and Xinference have in
common. Every field may be `null`, which means its default. Unknown fields are refused, so that no parameter is ignored in silence.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from xi_core.api.openai import TokenId

MAX_INPUTS = 2048
"""Most texts, or lists of token ids, in one request."""

Positive = Annotated[int, Meta(ge=1)]
Text = Annotated[str, Meta(min_length=1)]


class EmbeddingRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/embeddings`. `input` is a text, a list of texts, a list of token ids, or a list of such lists."""

    model: str
    input: Text | Annotated[list[Text | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    """`base64`: the vector's numbers as 32-bit floats, little endian. Default: `float`."""
    dimensions: Positive | None = None
    """Keep this many of the vector's first numbers, and bring it to length 1 again."""
    user: str | None = None
    """Who asks, for the caller's own books; it does not change the answer."""


class PoolingUsage(Struct, kw_only=True):
    """Tokens that the model read. There are no others: nothing is generated."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Struct, kw_only=True):
    """The vector of one input, of length 1."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Struct, kw_only=True):
    """Answer to `POST /v1/embeddings`: one entry per input, in order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: PoolingUsage


class Document(Struct, kw_only=True):
    """A document written as an object."""

    text: str


class RerankRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/rerank`. `documents` are texts, or objects with a `text`."""

    model: str
    query: Text
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_INPUTS)]
    top_n: Positive | None = None
    """Answer only the so many most relevant documents. Default: all."""
    return_documents: bool | None = None
    """Put each document's text into its result."""
    max_chunks_per_doc: Positive | None = None
    return_len: bool | None = None
    user: str | None = None
    """Who asks, for the caller's own books; it does not change the answer."""
    kwargs: Literal["{}"] | None = None
    """What xinference-client always sends; it can't say anything."""


class RerankResult(Struct, kw_only=True):
    """One document: its place in the request and how relevant it is to the query."""

    index: int
    relevance_score: float
    document: Document | msgspec.UnsetType = msgspec.UNSET


class RerankAnswer(Struct, kw_only=True):
    """Answer to `POST /v1/rerank`: the most relevant document first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: PoolingUsage
