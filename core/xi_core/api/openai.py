"""OpenAI's chat, completions and models APIs as structs: what the replica validates and what it answers.

Reference: https://platform.openai.com/docs/api-reference (chat, completions, models). Fields beyond it, all known from vLLM
and llama.cpp: `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `structured_outputs`, `chat_template_kwargs`,
`return_token_ids`. Every field may be `null`, which means its default. Unknown fields are refused, so that no parameter is ignored
in silence. Ranges are those that every engine can honour.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

MAX_CHOICES = 16
MAX_TOTAL_CHOICES = 128
"""Prompts of a request times `n`."""
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_TOOLS = 128
MAX_VARIABLES = 32
MAX_GRAMMAR = 64 * 1024
"""Characters of a grammar or a regular expression."""
MAX_OPTIONS = 1024

Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=10.0)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
Biases = Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""No engine has larger ones; llama.cpp would cut them down to 32 bits and read other tokens."""
Positive = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)]
TemplateValue = Annotated[str, Meta(max_length=1024)] | int | float | bool | None
TemplateVariables = Annotated[dict[str, TemplateValue], Meta(max_length=MAX_VARIABLES)]
Alternatives = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]


class Request(Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields that chat and completions share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Choices | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    """Keep the k likeliest tokens; 0 and -1 keep all."""
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Biases | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool | None = None
    """Tell the ids of the prompt's and the answer's tokens, where vLLM tells them."""
    user: str | None = None
    """Who asks, for the caller's own books; it does not change the answer."""


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class JsonSchema(Struct, kw_only=True, forbid_unknown_fields=True):
    """A schema that the answer must fit. `strict` changes nothing: xi is always strict."""

    schema: dict[str, Any]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer must look like, in OpenAI's form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer must look like, in vLLM's form: exactly one of these."""

    json: dict[str, Any] | None = None
    """A JSON schema."""
    regex: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR)] | None = None
    """A regular expression that the whole answer matches."""
    choice: Annotated[list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(min_length=1, max_length=MAX_OPTIONS)] | None = None
    """Texts, one of which is the answer."""
    grammar: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR)] | None = None
    """A grammar in llama.cpp's GBNF; the answer is a `root`."""


class Function(Struct, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of an object."""
    strict: bool | None = None
    """Whether the call's arguments must fit the schema, so that one that can't be held to is refused."""


class Tool(Struct, kw_only=True):
    """A tool; functions are the only kind."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, kw_only=True):
    """The function's name in a named tool choice."""

    name: str


class NamedTool(Struct, kw_only=True):
    """`tool_choice` that names one function."""

    function: NamedFunction
    type: Literal["function"] = "function"


class CalledFunction(Struct, kw_only=True):
    """A call's function: its name and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Struct, kw_only=True):
    """One call that an assistant message makes."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class TextPart(Struct, kw_only=True):
    """A part of a message's content; text is the only kind that these engines read."""

    text: str
    type: Literal["text"]


class Message(Struct, kw_only=True, omit_defaults=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    function_call: dict[str, Any] | None = None
    """OpenAI's older form of `tool_calls`: refused, for it would be lost. Null, as clients send it back, is taken."""


class ChatRequest(Request, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    """OpenAI's newer name of `max_tokens`; it wins when both are given."""
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    """False: at most one call per answer."""
    chat_template_kwargs: TemplateVariables | None = None
    """What the model's chat template is told besides, as in vLLM: `{"enable_thinking": false}`."""


class CompletionRequest(Request, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/completions`. `prompt` is a text or a list of token ids; or several of these, in a list that holds texts only or
    lists only. The choice c of the prompt p has the index p × `n` + c.
    """

    prompt: str | Annotated[list[TokenId | str | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    max_tokens: Positive | None = None
    """Default 16, as in OpenAI's API."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    """Begin the answer with the prompt. Not together with `logprobs`: those of the prompt's tokens are not computed."""


class PromptTokensDetails(Struct, kw_only=True):
    """`cached_tokens` of the prompt had not to be read: their keys and values were there already."""

    cached_tokens: int


class Usage(Struct, kw_only=True):
    """Tokens of a request: all choices count towards `completion_tokens`, each prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | msgspec.UnsetType = msgspec.UNSET
    """Where the engine tells."""


class TopLogprob(Struct, kw_only=True):
    """A token and its log-probability (natural logarithm)."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, kw_only=True):
    """A chosen token, its log-probability and the likeliest alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    """Log-probabilities of a chat choice."""

    content: list[TokenLogprob]


class CompletionLogprobs(Struct, kw_only=True):
    """Log-probabilities of a completion choice, in OpenAI's older form: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class AnswerMessage(Struct, kw_only=True):
    """The message of a chat choice."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(Struct, kw_only=True):
    """One answer to a chat request."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """All that were sampled, the end token with them; only where `return_token_ids` asked for them."""


class ChatCompletion(Struct, kw_only=True):
    """Answer to `POST /v1/chat/completions`, not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class CompletionChoice(Struct, kw_only=True):
    """One answer to a completion request."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """All that were sampled, the end token with them; only where `return_token_ids` asked for them."""
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class Completion(Struct, kw_only=True):
    """Answer to `POST /v1/completions`, not streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Model(Struct, kw_only=True):
    """One entry of `GET /v1/models`: OpenAI's four fields, then what xi adds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "xi"
    root: str | None = None
    """The launch's uid: its own `id`, but for a LoRA module."""
    parent: str | None = None
    """Of a LoRA module: the uid of the launch that serves it, which the fields below describe."""
    model_name: str = ""
    model_type: str = "LLM"
    model_engine: str = ""
    model_format: str = ""
    size_in_billions: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    replica: int = 1
    """How many replicas are wanted."""
    ready_replicas: int = 0
    """How many of them serve."""
    asleep_replicas: int = 0
    """How many sleep until the model is woken."""
    restarts: int = 0
    """How often one of them was started again after it had ended by its own fault."""
    state: str = "READY"
    endpoints: list[str] = field(default_factory=list)


class ModelList(Struct, kw_only=True):
    """Answer to `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]
