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
    """Body of `POST /v1/embeddings`."""

    model: str
    """The uid of a launch."""
    input: Text | Annotated[list[Text | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    encoding_format: Literal["float", "base64"] | None = None
    """`base64`: the vector's numbers as 32-bit floats, little endian. Default: `float`."""
    dimensions: Positive | None = None
    """Keep this many of the vector's first numbers, and bring it to length 1 again."""
    user: str | None = None
    """Who asks, for the caller's own books; it does not change the answer."""


class PoolingUsage(Struct, kw_only=True):
    """Tokens that the model read. There are no others: nothing is generated."""

    prompt_tokens: int
    """Those of all inputs."""
    total_tokens: int
    """The same."""


class Embedding(Struct, kw_only=True):
    """The vector of one input, of length 1."""

    object: Literal["embedding"] = "embedding"
    """What this is."""
    index: int
    """The input's number, from 0."""
    embedding: list[float] | str
    """Its numbers; as text with `base64`."""


class EmbeddingList(Struct, kw_only=True):
    """Answer to `POST /v1/embeddings`: one entry per input, in order."""

    object: Literal["list"] = "list"
    """What this is."""
    data: list[Embedding]
    """The vectors."""
    model: str
    """As asked for."""
    usage: PoolingUsage
    """Tokens, of all inputs."""


class Document(Struct, kw_only=True):
    """A document written as an object."""

    text: str
    """Its text."""


class RerankRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/rerank`."""

    model: str
    """The uid of a launch."""
    query: Text
    """What the documents are to be relevant to."""
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_INPUTS)]
    """Texts, or objects with a `text`."""
    top_n: Positive | None = None
    """Answer only the so many most relevant documents. Default: all."""
    return_documents: bool | None = None
    """Put each document's text into its result."""
    max_chunks_per_doc: Positive | None = None
    """Refused: documents are not split. Send the parts as documents of their own."""
    return_len: bool | None = None
    """Refused where it is true: `usage` counts the tokens."""
    user: str | None = None
    """Who asks, for the caller's own books; it does not change the answer."""
    kwargs: Literal["{}"] | None = None
    """What xinference-client always sends; it can't say anything."""


class RerankResult(Struct, kw_only=True):
    """One document: its place in the request and how relevant it is to the query."""

    index: int
    """Its place in the request, from 0."""
    relevance_score: float
    """How relevant it is: the higher, the more."""
    document: Document | msgspec.UnsetType = msgspec.UNSET
    """Only with `return_documents`."""


class RerankAnswer(Struct, kw_only=True):
    """Answer to `POST /v1/rerank`: the most relevant document first."""

    id: str
    """Of this answer alone."""
    model: str
    """As asked for."""
    results: list[RerankResult]
    """The documents, the most relevant first."""
    usage: PoolingUsage
    """Tokens, of the query with each document."""
