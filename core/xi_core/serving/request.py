"""From a request's body to a `Job`: the only validation that a body gets. Runs in the replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from xi_core.api.body import decode_request
from xi_core.api.openai import (
    MAX_TOTAL_CHOICES,
    ChatRequest,
    CompletionRequest,
    Message,
    NamedTool,
    ResponseFormat,
    StructuredOutputs,
)
from xi_core.engine.grammar import Grammar
from xi_core.errors import InvalidRequest, NotFound, UnsupportedField, XiError
from xi_core.serving.structured import grammar_of
from xi_core.wire.manifest import Manifest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
DEFAULT_COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that names none, as in OpenAI's API."""
MOST_TOP_K = 2**30
"""More than any vocabulary has, and few enough for the 32 bits in which engines hold it."""
LONGEST_NAME = 64
LONGEST_TOKEN = 256
"""Characters. No vocabulary has tokens that are longer."""

_decode: dict[str, Callable[[bytes], ChatRequest | CompletionRequest]] = {
    CHAT: msgspec.json.Decoder(ChatRequest).decode,
    COMPLETIONS: msgspec.json.Decoder(CompletionRequest).decode,
}
_FREE_TEXT = ResponseFormat(type="text")
"""What every engine gives when it isn't asked for anything else."""
_TOLD_AS = {"max_completion_tokens": "max_tokens", "top_logprobs": "logprobs"}
"""Fields that a manifest tells of under another's name."""
_ALWAYS = frozenset({"model", "messages", "prompt", "stream", "user", "input", "query", "documents", "kwargs"})
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt", "self")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


class Job(Struct, kw_only=True):
    """A validated request. `sampling` holds the sampling fields with every default filled in; `logprobs` is None when not asked for."""

    kind: Literal["chat", "completions"]
    request: ChatRequest | CompletionRequest
    stream: bool
    include_usage: bool
    n: int
    """Choices of each prompt."""
    max_tokens: int | None
    sampling: dict[str, Any]
    logit_bias: dict[int, float]
    seed: int | None
    stops: list[str]
    ignore_eos: bool
    logprobs: int | None
    tools: list[dict[str, Any]] | None
    echo: bool
    token_ids: bool = False
    """Whether the answer is to tell the ids of its tokens and of the prompts'."""
    prompts: Sequence[str | list[int]] = ("",)
    """Of a completions job: texts, or lists of token ids. A chat has one prompt, which its messages make."""
    grammar: Grammar | None = None
    """What the answer must look like."""
    variables: dict[str, Any] = field(default_factory=dict)
    """What the chat template is told besides the messages."""
    adapter: str | None = None
    """The LoRA module that the request calls as its model."""

    @property
    def one_call(self) -> bool:
        """Whether an answer may hold one tool call only: a tool that the request names is called once."""
        asked = self.request
        return isinstance(asked, ChatRequest) and (asked.parallel_tool_calls is False or isinstance(asked.tool_choice, NamedTool))

    @property
    def chat(self) -> ChatRequest:
        """The request of a chat job."""
        if not isinstance(self.request, ChatRequest):
            raise TypeError("not a chat job")
        return self.request

    @property
    def prompt_field(self) -> str:
        """The field that holds the prompts, for errors."""
        return "messages" if self.kind == "chat" else "prompt"

    @property
    def choices(self) -> int:
        """Of all prompts. Those of one stand together: the choice c of the prompt p is p × `n` + c."""
        return len(self.prompts) * self.n

    def prompt_of(self, choice: int) -> int:
        """Number of the prompt that a choice answers."""
        return choice // self.n

    def seed_of(self, choice: int) -> int | None:
        """Each choice of a prompt has a seed of its own, so that they differ but repeat; every prompt has the same, as if it came alone.

        Behind the last seed of 64 bits comes the first.
        """
        return None if self.seed is None else (self.seed + choice % self.n + 2**63) % 2**64 - 2**63

    def least_tokens(self) -> list[int]:
        """Tokens that each prompt has at the very least: an answer that is quick to give."""
        if self.kind == "chat":
            return [sum(len(message_text(message)) for message in self.chat.messages) // LONGEST_TOKEN]
        return [len(prompt) // LONGEST_TOKEN if isinstance(prompt, str) else len(prompt) for prompt in self.prompts]

    def blame(self, prompt: int, error: XiError) -> XiError:
        """`error`, which came of one prompt. Where there are several it says of which."""
        if len(self.prompts) == 1 or error.param != "prompt":
            return error
        place, body = f"prompt[{prompt}]", error.body()
        return XiError.from_body(replace(body, message=f"{place}: {body.message.removeprefix('prompt: ')}", param=place))


def parse(route: str, body: bytes, manifest: Manifest, engine: str, defaults: dict[str, Any]) -> Job:
    """Validate `body` by the API and by what the loaded model honours.

    `defaults` are sampling values for fields that the request leaves open, as far as the model honours them.

    Raises `InvalidRequest`, `UnsupportedField` or `NotFound`.
    """
    if route == CHAT and manifest.serves(COMPLETIONS) and not manifest.serves(CHAT):
        raise InvalidRequest("this model has no chat template; use /v1/completions, or launch it with a template", param="messages")
    if route not in _decode or not manifest.serves(route):
        raise NotFound(f"this model does not serve {route}; it serves: {', '.join(manifest.endpoints)}", param="model")
    request = decode_request(_decode[route], body)
    fields = manifest.endpoints[route]
    check_manifest(request, fields, engine)
    return _job(request, {name: value for name, value in defaults.items() if name in fields and fields[name].state != "no"})


def check_manifest(request: Struct, fields: dict[str, Any], engine: str) -> None:
    """Raises `UnsupportedField` for a field of `request` that `fields`, a manifest's endpoint, doesn't honour."""
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if name in _ALWAYS or value is None or _asks_nothing(name, value):
            continue
        cell = fields.get(_TOLD_AS.get(name, name))
        if cell is None or cell.state == "no":
            reason = f": {cell.reason}" if cell is not None and cell.reason else ""
            raise UnsupportedField(f"engine {engine} does not support '{name}' for this model{reason}", param=name)
        if cell.state == "limited":
            _check_limit(name, value, cell, engine)


def _asks_nothing(name: str, value: Any) -> bool:
    """Whether the value is what every engine does unasked. Several calls in an answer are such a thing, one only is none."""
    return value is (name == "parallel_tool_calls") or value in ([], {}, _FREE_TEXT)


def _check_limit(name: str, value: Any, cell: Any, engine: str) -> None:
    reason = f" ({cell.reason})" if cell.reason else ""
    if cell.maximum is not None and isinstance(value, int | float) and not isinstance(value, bool) and value > cell.maximum:
        raise UnsupportedField(f"{name}: engine {engine} takes at most {cell.maximum:g}{reason}", param=name)
    if isinstance(value, StructuredOutputs) and cell.values:
        _check_kinds(value, cell, engine)
    word = "named" if isinstance(value, NamedTool) else value
    if cell.values and isinstance(word, str) and word not in cell.values:
        raise UnsupportedField(f"{name}: engine {engine} takes only {', '.join(cell.values)}{reason}", param=name)


def _check_kinds(value: StructuredOutputs, cell: Any, engine: str) -> None:
    for name in value.__struct_fields__:
        if getattr(value, name) is not None and name not in cell.values:
            reason = f" ({cell.reason})" if cell.reason else ""
            param = f"structured_outputs.{name}"
            raise UnsupportedField(f"{param}: engine {engine} takes only {', '.join(cell.values)}{reason}", param=param)


def _job(request: ChatRequest | CompletionRequest, defaults: dict[str, Any]) -> Job:
    stream = bool(request.stream)
    if request.stream_options is not None and not stream:
        raise InvalidRequest("stream_options is only allowed with stream: true", param="stream_options")
    if isinstance(request, ChatRequest):
        _check_messages(request.messages)
    stop = request.stop or []
    return Job(
        kind="chat" if isinstance(request, ChatRequest) else "completions",
        request=request,
        stream=stream,
        include_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
        n=request.n or 1,
        max_tokens=_max_tokens(request),
        sampling=_sampling(request, defaults),
        logit_bias=_biases(request.logit_bias or {}),
        seed=request.seed,
        stops=[stop] if isinstance(stop, str) else stop,
        ignore_eos=bool(request.ignore_eos),
        logprobs=_logprobs(request),
        tools=_tools(request) if isinstance(request, ChatRequest) else None,
        echo=isinstance(request, CompletionRequest) and bool(request.echo),
        token_ids=bool(request.return_token_ids),
        prompts=_prompts(request.prompt, request.n or 1) if isinstance(request, CompletionRequest) else ("",),
        grammar=grammar_of(request),
        variables=_variables(request) if isinstance(request, ChatRequest) else {},
    )


def kind_of_all(field: str, given: list[Any]) -> type:
    """The type of a list's entries, of which there is at least one. Raises `InvalidRequest` for a list of several types."""
    kind = type(given[0])
    odd = next((index for index, one in enumerate(given) if type(one) is not kind), None)
    if odd is not None:
        raise InvalidRequest(
            f"{field}[{odd}]: all entries are texts, all are token ids, or all are lists of token ids; this one is not as the first is",
            param=f"{field}[{odd}]",
        )
    return kind


def _prompts(given: Any, n: int) -> list[str] | list[list[int]]:
    """A text, or a list that isn't empty: of token ids, which are one prompt, or of texts or lists of token ids, each of which is one."""
    if isinstance(given, str):
        return [given]
    kind = kind_of_all("prompt", given)
    if kind is int:
        return [given]
    if len(given) * n > MAX_TOTAL_CHOICES:
        raise InvalidRequest(
            f"prompt: {len(given)} prompts, with {n} choices each, make more than the {MAX_TOTAL_CHOICES} choices of one request; "
            "send several requests",
            param="prompt",
        )
    found: list[str] | list[list[int]] = given
    return found


def _check_messages(messages: list[Message]) -> None:
    for index, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            field = f"messages[{index}].content"
            raise InvalidRequest(f"{field}: a message of the role '{message.role}' needs content", param=field)
        if message.function_call is not None:
            field = f"messages[{index}].function_call"
            raise InvalidRequest(f"{field} is an older form that xi doesn't take; send the call in `tool_calls`", param=field)


def message_text(message: Message) -> str:
    """A message's content as one text. Parts become lines of their own, as in vLLM and llama.cpp."""
    content = message.content
    return content if isinstance(content, str) else "\n".join(part.text for part in content or [])


def _max_tokens(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, ChatRequest):
        return request.max_completion_tokens or request.max_tokens
    return request.max_tokens or DEFAULT_COMPLETION_TOKENS


def _sampling(request: ChatRequest | CompletionRequest, defaults: dict[str, Any]) -> dict[str, Any]:
    neutral = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
    }
    given = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    merged = {**neutral, **{name: value for name, value in defaults.items() if name in neutral}, **given}
    merged["top_k"] = min(max(0, merged["top_k"]), MOST_TOP_K)
    return merged


def _biases(given: dict[str, float]) -> dict[int, float]:
    wrong = next((token for token in given if not (token.isascii() and token.isdigit() and len(token) <= 10)), None)
    if wrong is not None:
        raise InvalidRequest(f"logit_bias: keys are token ids, as text; '{wrong[:50]}' is none", param="logit_bias")
    return {int(token): bias for token, bias in given.items()}


def _logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        if request.echo and request.logprobs is not None:
            raise InvalidRequest(
                "logprobs with echo: the log-probabilities of the prompt's tokens are not computed; leave out one of the two",
                param="logprobs",
            )
        return request.logprobs
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def _tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice needs tools", param="tool_choice")
        if request.parallel_tool_calls is not None:
            raise InvalidRequest("parallel_tool_calls needs tools", param="parallel_tool_calls")
        return None
    names = [tool.function.name for tool in request.tools]
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidRequest(f"tool_choice names '{choice.function.name}'; the tools are: {', '.join(names)}", param="tool_choice")
    if choice == "none":
        return None
    return [_tool(msgspec.to_builtins(tool)) for tool in request.tools]


def _variables(request: ChatRequest) -> dict[str, Any]:
    given = request.chat_template_kwargs or {}
    own = next((name for name in given if name in _OWN_VARIABLES), None)
    if own is not None:
        raise InvalidRequest(f"chat_template_kwargs: '{own}' is set by xi itself", param="chat_template_kwargs")
    strange = next((name for name in given if not (name.isascii() and name.isidentifier() and len(name) <= LONGEST_NAME)), None)
    if strange is not None:
        raise InvalidRequest(f"chat_template_kwargs: '{strange[:50]}' is no name that a template can use", param="chat_template_kwargs")
    return dict(given)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """As templates and engines expect it: `type` first, absent fields absent."""
    function = {name: value for name, value in tool["function"].items() if value is not None}
    return {"type": "function", "function": function}
