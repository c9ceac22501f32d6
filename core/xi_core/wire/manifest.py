"""Manifest: what an engine, or a loaded model, honours, endpoint by endpoint and field by field."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field


class Ability(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One cell: `yes`, `no` with a reason, or `limited` to a maximum or to some values."""

    state: Literal["yes", "no", "limited"] = "yes"
    reason: str = ""
    maximum: float | None = None
    values: tuple[str, ...] = ()


YES = Ability()


def no(reason: str) -> Ability:
    """A field that is not honoured, and why."""
    return Ability(state="no", reason=reason)


def limited(*values: str, maximum: float | None = None, reason: str = "") -> Ability:
    """A field honoured up to a maximum, or for some values only."""
    return Ability(state="limited", values=values, maximum=maximum, reason=reason)


class Manifest(Struct, kw_only=True):
    """`endpoints` maps a route (`/v1/chat/completions`) to its fields. An endpoint or field that isn't in it is not served.

    A loaded model's may only narrow its engine's, which the conformance kits check.
    """

    endpoints: dict[str, dict[str, Ability]] = field(default_factory=dict)

    def serves(self, endpoint: str) -> bool:
        """Whether the endpoint is served at all."""
        return endpoint in self.endpoints


def of_fields(**endpoints: dict[str, Ability]) -> Manifest:
    """A manifest from keyword arguments `chat=`, `completions=`, `embeddings=` and `rerank=`."""
    routes = {
        "chat": "/v1/chat/completions",
        "completions": "/v1/completions",
        "embeddings": "/v1/embeddings",
        "rerank": "/v1/rerank",
    }
    return Manifest(endpoints={routes[name]: fields for name, fields in endpoints.items()})


COMMON_FIELDS = (
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "seed", "stop", "ignore_eos", "stream_options", "max_tokens", "logprobs", "return_token_ids",
)  # fmt: skip
"""Request fields besides the prompt that chat and completions share, in the order of the documentation's table."""

EMBEDDING_FIELDS = ("encoding_format", "dimensions")
RERANK_FIELDS = ("top_n", "return_documents")
"""What xi itself does for every engine that embeds, or that reranks."""


def pooling_manifest(*kinds: str) -> Manifest:
    """What xi serves over an `EmbeddingEngine` (`embeddings`) or a `RerankEngine` (`rerank`)."""
    unserved = {
        "max_chunks_per_doc": no("documents are not split; send the parts as documents of their own"),
        "return_len": no("`usage` counts the tokens"),
    }
    fields = {"embeddings": dict.fromkeys(EMBEDDING_FIELDS, YES), "rerank": dict.fromkeys(RERANK_FIELDS, YES) | unserved}
    return of_fields(**{kind: fields[kind] for kind in kinds})


TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
"""Request fields of chat that need a parser of tool calls."""
STRUCTURED_FIELDS = ("response_format", "structured_outputs")
"""Request fields that say what the answer must look like, on chat and completions."""
