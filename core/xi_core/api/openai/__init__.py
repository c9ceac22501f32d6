"""OpenAI's chat, completions and models APIs as structs: what the replica validates and what it answers.

Reference: https://platform.openai.com/docs/api-reference (chat, completions, models). `requests` holds what is sent, `answers` what comes
back; others import from here.
"""

from __future__ import annotations

from xi_core.api.openai.answers import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Model,
    ModelList,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from xi_core.api.openai.requests import (
    MAX_CHOICES,
    MAX_TOTAL_CHOICES,
    CalledFunction,
    ChatRequest,
    CompletionRequest,
    Function,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    Request,
    ResponseFormat,
    StreamOptions,
    StructuredOutputs,
    TextPart,
    TokenId,
    Tool,
    ToolCall,
)

__all__ = [
    "MAX_CHOICES",
    "MAX_TOTAL_CHOICES",
    "AnswerMessage",
    "CalledFunction",
    "ChatChoice",
    "ChatCompletion",
    "ChatLogprobs",
    "ChatRequest",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "Function",
    "JsonSchema",
    "Message",
    "Model",
    "ModelList",
    "NamedFunction",
    "NamedTool",
    "PromptTokensDetails",
    "Request",
    "ResponseFormat",
    "StreamOptions",
    "StructuredOutputs",
    "TextPart",
    "TokenId",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "TopLogprob",
    "Usage",
]
