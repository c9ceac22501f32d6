"""Answers of OpenAI's chat, completions and models APIs."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct, field

from xi_core.api.openai.requests import ToolCall


class PromptTokensDetails(Struct, kw_only=True):
    """`cached_tokens` of the prompt had not to be read: their keys and values were there already."""

    cached_tokens: int
    """How many."""


class Usage(Struct, kw_only=True):
    """Tokens of a request: all choices count towards `completion_tokens`, each prompt counts once."""

    prompt_tokens: int
    """Those of the prompts."""
    completion_tokens: int
    """Those of the answers."""
    total_tokens: int
    """Both."""
    prompt_tokens_details: PromptTokensDetails | msgspec.UnsetType = msgspec.UNSET
    """Where the engine tells."""


class TopLogprob(Struct, kw_only=True):
    """A token and its log-probability (natural logarithm)."""

    token: str
    """Its text."""
    logprob: float
    """Its log-probability."""
    bytes: list[int]
    """Its text's bytes in UTF-8: a token may be a part of a character."""


class TokenLogprob(Struct, kw_only=True):
    """A chosen token, its log-probability and the likeliest alternatives."""

    token: str
    """Its text."""
    logprob: float
    """Its log-probability."""
    bytes: list[int]
    """Its text's bytes in UTF-8: a token may be a part of a character."""
    top_logprobs: list[TopLogprob]
    """As many of the likeliest as were asked for."""


class ChatLogprobs(Struct, kw_only=True):
    """Log-probabilities of a chat choice."""

    content: list[TokenLogprob]
    """One entry for each token."""


class CompletionLogprobs(Struct, kw_only=True):
    """Log-probabilities of a completion choice, in OpenAI's older form: parallel lists."""

    tokens: list[str]
    """Their texts."""
    token_logprobs: list[float | None]
    """Their log-probabilities."""
    top_logprobs: list[dict[str, float]] | None
    """For each, the likeliest tokens' log-probabilities by their texts."""
    text_offset: list[int]
    """At which character of the text each begins."""


class AnswerMessage(Struct, kw_only=True):
    """The message of a chat choice."""

    role: Literal["assistant"] = "assistant"
    """Whose it is."""
    content: str | None = None
    """The text; null where there are only calls."""
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET
    """Calls of tools, where there are some."""
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    """What the model thought first, where a parser tells it from the text."""


class ChatChoice(Struct, kw_only=True):
    """One answer to a chat request."""

    index: int
    """Its number, from 0."""
    message: AnswerMessage
    """What the model said."""
    logprobs: ChatLogprobs | None = None
    """Only where they were asked for."""
    finish_reason: str
    """Why it ended: `stop`, `length` (`max_tokens` or the context), `tool_calls`."""
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """All that were sampled, the end token with them; only where `return_token_ids` asked for them."""


class ChatCompletion(Struct, kw_only=True):
    """Answer to `POST /v1/chat/completions`, not streamed."""

    id: str
    """Of this answer alone."""
    object: Literal["chat.completion"] = "chat.completion"
    """What this is."""
    created: int
    """When, in seconds since 1970."""
    model: str
    """As asked for."""
    choices: list[ChatChoice]
    """The answers."""
    usage: Usage
    """Tokens, of all answers."""
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """Only where `return_token_ids` asked for them."""


class CompletionChoice(Struct, kw_only=True):
    """One answer to a completion request."""

    index: int
    """Its number, from 0, over all prompts."""
    text: str
    """What the model went on with, after the prompt with `echo`."""
    logprobs: CompletionLogprobs | None = None
    """Only where they were asked for."""
    finish_reason: str
    """Why it ended: `stop`, or `length` (`max_tokens` or the context)."""
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """All that were sampled, the end token with them; only where `return_token_ids` asked for them."""
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """Only where `return_token_ids` asked for them."""


class Completion(Struct, kw_only=True):
    """Answer to `POST /v1/completions`, not streamed."""

    id: str
    """Of this answer alone."""
    object: Literal["text_completion"] = "text_completion"
    """What this is."""
    created: int
    """When, in seconds since 1970."""
    model: str
    """As asked for."""
    choices: list[CompletionChoice]
    """The answers."""
    usage: Usage
    """Tokens, of all answers."""


class Model(Struct, kw_only=True):
    """One entry of `GET /v1/models`: OpenAI's four fields, then what xi adds."""

    id: str
    """What requests call it by."""
    object: Literal["model"] = "model"
    """What this is."""
    created: int
    """When it was launched, in seconds since 1970; 0 while the supervisor is away."""
    owned_by: str = "xi"
    """Always `xi`."""
    root: str | None = None
    """The launch's uid: its own `id`, but for a LoRA module."""
    parent: str | None = None
    """Of a LoRA module: the uid of the launch that serves it, which the fields below describe."""
    model_name: str = ""
    """The family, hub id or path that was launched."""
    model_type: str = "LLM"
    """What it is for: `LLM`, `embedding` or `rerank`."""
    model_engine: str = ""
    """The engine that runs it."""
    model_format: str = ""
    """Such as `pytorch`, `ggufv2` or `awq`."""
    size_in_billions: str | None = None
    """Billions of weights."""
    quantization: str | None = None
    """Such as `none`, `q4_k_m` or `Int4`."""
    context_length: int | None = None
    """Most tokens of a prompt with its answer."""
    replica: int = 1
    """How many replicas are wanted."""
    ready_replicas: int = 0
    """How many of them serve."""
    asleep_replicas: int = 0
    """How many sleep until the model is woken."""
    restarts: int = 0
    """How often one of them was started again after it had ended by its own fault."""
    state: str = "READY"
    """How far the launch is, as in ModelStatus."""
    detail: str = ""
    """Why it isn't READY: what it failed of, or what its replicas wait for or do."""
    endpoints: list[str] = field(default_factory=list)
    """Paths of the inference API that it serves."""


class ModelList(Struct, kw_only=True):
    """Answer to `GET /v1/models`."""

    object: Literal["list"] = "list"
    """What this is."""
    data: list[Model]
    """The launches, each followed by its LoRA modules."""
