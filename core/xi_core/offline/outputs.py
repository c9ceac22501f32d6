"""What the methods of `LLM` return, in the shape of vLLM's outputs, made of the API's answers."""

from __future__ import annotations

from typing import TypeVar

from msgspec import UNSET, Struct, UnsetType, field

from xi_core.api.embeddings import EmbeddingList, RerankAnswer
from xi_core.api.openai import ChatChoice, ChatCompletion, ChatLogprobs, Completion, CompletionLogprobs, ToolCall, Usage


class CompletionOutput(Struct, kw_only=True):
    """One answer to one prompt."""

    index: int
    text: str
    finish_reason: str
    """`stop`, `length` or `tool_calls`."""
    token_ids: list[int] | None = None
    """All that were sampled, the end token with them. None: this engine does not tell them (`return_token_ids` in its manifest)."""
    logprobs: ChatLogprobs | CompletionLogprobs | None = None
    """In the API's form, where `SamplingParams.logprobs` asked for them."""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


class RequestOutput(Struct, kw_only=True):
    """One prompt and its answers, in the order of their indices."""

    request_id: str
    prompt: str | None
    """The text as given; None where token ids or messages were."""
    outputs: list[CompletionOutput]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    """As given, or as the model read the text or the messages; None where the engine does not tell."""
    finished: bool = True


class EmbeddingOutput(Struct, kw_only=True):
    """A vector of length 1."""

    embedding: list[float]


class EmbeddingRequestOutput(Struct, kw_only=True):
    """One text and its vector."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int] | None = None
    """As given; None where a text was."""
    finished: bool = True


class ScoringOutput(Struct, kw_only=True):
    """How relevant a document is to its query."""

    score: float


class ScoringRequestOutput(Struct, kw_only=True):
    """One document and its score."""

    request_id: str
    outputs: ScoringOutput
    finished: bool = True


def of_completion(prompt: str | list[int], answer: Completion) -> RequestOutput:
    """The output of a completion of `prompt`."""
    outputs = [
        CompletionOutput(
            index=choice.index,
            text=choice.text,
            finish_reason=choice.finish_reason,
            token_ids=_known(choice.token_ids),
            logprobs=choice.logprobs,
        )
        for choice in sorted(answer.choices, key=lambda choice: choice.index)
    ]
    text, ids = (prompt, _known(answer.choices[0].prompt_token_ids)) if isinstance(prompt, str) else (None, prompt)
    return RequestOutput(request_id=answer.id, prompt=text, prompt_token_ids=ids, outputs=outputs, usage=answer.usage)


def of_chat(answer: ChatCompletion) -> RequestOutput:
    """The output of a chat."""
    outputs = [_of_choice(choice) for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    ids = _known(answer.prompt_token_ids)
    return RequestOutput(request_id=answer.id, prompt=None, prompt_token_ids=ids, outputs=outputs, usage=answer.usage)


def of_embedding(place: int, prompt: str | list[int], answer: EmbeddingList) -> EmbeddingRequestOutput:
    """The output of one text's embedding; `place` is its number."""
    vector = answer.data[0].embedding
    if isinstance(vector, str):
        raise TypeError("numbers were asked for")
    ids = None if isinstance(prompt, str) else prompt
    return EmbeddingRequestOutput(request_id=str(place), outputs=EmbeddingOutput(embedding=vector), prompt_token_ids=ids)


def of_rerank(answer: RerankAnswer) -> list[ScoringRequestOutput]:
    """The outputs of one query's documents, in the order in which they were given."""
    results = sorted(answer.results, key=lambda result: result.index)
    return [
        ScoringRequestOutput(request_id=f"{answer.id}-{result.index}", outputs=ScoringOutput(score=result.relevance_score))
        for result in results
    ]


T = TypeVar("T")


def _known(told: T | UnsetType) -> T | None:
    return None if isinstance(told, UnsetType) else told


def _of_choice(choice: ChatChoice) -> CompletionOutput:
    message = choice.message
    return CompletionOutput(
        index=choice.index,
        text=message.content or "",
        finish_reason=choice.finish_reason,
        token_ids=_known(choice.token_ids),
        logprobs=choice.logprobs,
        reasoning=message.reasoning_content or "",
        tool_calls=[] if message.tool_calls is UNSET else message.tool_calls,
    )
