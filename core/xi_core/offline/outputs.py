"""What `LLM.generate` and `LLM.chat` return, in the shape of vLLM's outputs, made of the API's answers."""

from __future__ import annotations

from msgspec import UNSET, Struct, field

from xi_core.api.openai import ChatChoice, ChatCompletion, ChatLogprobs, Completion, CompletionLogprobs, ToolCall, Usage


class CompletionOutput(Struct, kw_only=True):
    """One answer to one prompt."""

    index: int
    text: str
    finish_reason: str
    """`stop`, `length` or `tool_calls`."""
    token_ids: list[int] | None = None
    """None: not known; engines behind the API tell texts."""
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
    """As given; None where a text or messages were."""
    finished: bool = True


def of_completion(prompt: str | list[int], answer: Completion) -> RequestOutput:
    """The output of a completion of `prompt`."""
    outputs = [
        CompletionOutput(index=choice.index, text=choice.text, finish_reason=choice.finish_reason, logprobs=choice.logprobs)
        for choice in sorted(answer.choices, key=lambda choice: choice.index)
    ]
    text, ids = (prompt, None) if isinstance(prompt, str) else (None, prompt)
    return RequestOutput(request_id=answer.id, prompt=text, prompt_token_ids=ids, outputs=outputs, usage=answer.usage)


def of_chat(answer: ChatCompletion) -> RequestOutput:
    """The output of a chat."""
    outputs = [_of_choice(choice) for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    return RequestOutput(request_id=answer.id, prompt=None, outputs=outputs, usage=answer.usage)


def _of_choice(choice: ChatChoice) -> CompletionOutput:
    message = choice.message
    return CompletionOutput(
        index=choice.index,
        text=message.content or "",
        finish_reason=choice.finish_reason,
        logprobs=choice.logprobs,
        reasoning=message.reasoning_content or "",
        tool_calls=[] if message.tool_calls is UNSET else message.tool_calls,
    )
