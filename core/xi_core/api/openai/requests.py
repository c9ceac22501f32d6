"""Bodies of OpenAI's chat and completions APIs.

Fields beyond OpenAI's, all known from vLLM and llama.cpp: `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `structured_outputs`,
`chat_template_kwargs`, `return_token_ids`. Every field that may be left out, but a `type`, may be `null`, which means its default.
Unknown fields are refused, so that no parameter is ignored in silence. Ranges are those that every engine can honour.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

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
    """The uid of a launch, or the name of one of its LoRA modules."""
    stream: bool | None = None
    """Answer with server-sent events while it is generated."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    n: Choices | None = None
    """How many answers to each prompt; default 1."""
    temperature: Temperature | None = None
    """How far from the likeliest token to stray; 0: not at all."""
    top_p: TopP | None = None
    """Keep the likeliest tokens that have this share of the probability together."""
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    """Keep the k likeliest tokens; 0 and -1 keep all."""
    min_p: Share | None = None
    """Keep tokens that have at least this share of the likeliest one's probability."""
    presence_penalty: Penalty | None = None
    """Above 0: tokens that came already become less likely."""
    frequency_penalty: Penalty | None = None
    """Above 0: tokens become less likely with each time that they came."""
    repetition_penalty: RepetitionPenalty | None = None
    """Above 1: tokens of the prompt and of the answer become less likely; 1 changes nothing."""
    logit_bias: Biases | None = None
    """What is added to the logits of tokens, by their ids as texts."""
    seed: Seed | None = None
    """The same seed and request give the same answer, as far as the engine can."""
    stop: Stops | None = None
    """A text, or several, at which the answer ends; it isn't part of the answer."""
    ignore_eos: bool | None = None
    """Go on after the model's own end, up to `max_tokens`."""
    response_format: ResponseFormat | None = None
    """What the answer must look like, in OpenAI's form."""
    structured_outputs: StructuredOutputs | None = None
    """What the answer must look like, in vLLM's form."""
    return_token_ids: bool | None = None
    """Tell the ids of the prompt's and the answer's tokens, where vLLM tells them."""
    user: str | None = None
    """Who asks, for the caller's own books; it does not change the answer."""


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    """End with an event that has no choices and tells the usage."""


class JsonSchema(Struct, kw_only=True, forbid_unknown_fields=True):
    """A schema that the answer must fit. `strict` changes nothing: xi is always strict."""

    schema: dict[str, Any]
    """The schema."""
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """What the schema is called; it changes nothing."""
    description: str | None = None
    """What it is for; it changes nothing."""
    strict: bool | None = None
    """It changes nothing: xi is always strict."""


class ResponseFormat(Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer must look like, in OpenAI's form."""

    type: Literal["text", "json_object", "json_schema"]
    """Any text, some JSON object, or JSON that fits `json_schema`."""
    json_schema: JsonSchema | None = None
    """Only with the type of this name."""


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
    """What calls name it by."""
    description: str | None = None
    """What it does, for the model."""
    parameters: dict[str, Any] | None = None
    """A JSON schema of an object."""
    strict: bool | None = None
    """Whether the call's arguments must fit the schema, so that one that can't be held to is refused."""


class Tool(Struct, kw_only=True):
    """A tool; functions are the only kind."""

    function: Function
    """The function."""
    type: Literal["function"] = "function"
    """The only kind."""


class NamedFunction(Struct, kw_only=True):
    """The function's name in a named tool choice."""

    name: str
    """That of one of `tools`."""


class NamedTool(Struct, kw_only=True):
    """`tool_choice` that names one function."""

    function: NamedFunction
    """The one that is to be called."""
    type: Literal["function"] = "function"
    """The only kind."""


class CalledFunction(Struct, kw_only=True):
    """A call's function: its name and its arguments as JSON text."""

    name: str
    """Its name."""
    arguments: str
    """Its arguments as JSON text; what the model wrote need not be valid."""


class ToolCall(Struct, kw_only=True):
    """One call that an assistant message makes."""

    id: str
    """What the tool's answer names it by (`tool_call_id`)."""
    function: CalledFunction
    """What is called."""
    type: Literal["function"] = "function"
    """The only kind."""


class TextPart(Struct, kw_only=True):
    """A part of a message's content; text is the only kind that these engines read."""

    text: str
    """The text."""
    type: Literal["text"]
    """The only kind."""


class Message(Struct, kw_only=True, omit_defaults=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Whose it is; how a role is told to the model is up to its chat template."""
    content: str | list[TextPart] | None = None
    """Its text, whole or in parts."""
    name: str | None = None
    """Of whom it is, or of which tool; for the chat template."""
    tool_calls: list[ToolCall] | None = None
    """Of an assistant's message: the calls that it makes."""
    tool_call_id: str | None = None
    """Of a tool's message: the call that it answers."""
    reasoning_content: str | None = None
    """Of an assistant's message: what it thought; for the chat template."""
    function_call: dict[str, Any] | None = None
    """OpenAI's older form of `tool_calls`: refused, for it would be lost. Null, as clients send it back, is taken."""


class ChatRequest(Request, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    """The conversation up to now."""
    max_tokens: Positive | None = None
    """Most tokens of an answer; default: as many as the context has room for."""
    max_completion_tokens: Positive | None = None
    """OpenAI's newer name of `max_tokens`; it wins when both are given."""
    logprobs: bool | None = None
    """Tell the log-probability of each token."""
    top_logprobs: Alternatives | None = None
    """How many likeliest tokens to tell at each place; only with `logprobs`."""
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    """Functions that the model may call."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """Whether it may call one, must, or must call this one. Default: `auto` where there are tools."""
    parallel_tool_calls: bool | None = None
    """False: at most one call per answer."""
    chat_template_kwargs: TemplateVariables | None = None
    """What the model's chat template is told besides, as in vLLM: `{"enable_thinking": false}`."""


class CompletionRequest(Request, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/completions`. `prompt` is a text or a list of token ids; or several of these, in a list that holds texts only or
    lists only. The choice c of the prompt p has the index p × `n` + c.
    """

    prompt: str | Annotated[list[TokenId | str | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    """What is to be gone on with: texts or token ids."""
    max_tokens: Positive | None = None
    """Default 16, as in OpenAI's API."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """How many likeliest tokens to tell at each place, with the log-probability of the one that was chosen."""
    echo: bool | None = None
    """Begin the answer with the prompt. Not together with `logprobs`: those of the prompt's tokens are not computed."""
