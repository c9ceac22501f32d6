"""From xi's request body to the fields of llama.cpp's server, and from its errors to xi's. Pure; called by `engine.py` per request."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field

from xi_core.engine.base import ApiRequest
from xi_core.engine.formats import OF_NAMES, OF_SCHEMAS, spelled
from xi_core.errors import ContextLengthExceeded, InvalidRequest, UnsupportedField
from xi_core.serving.schema import normalise
from xi_core.serving.structured import grammar_in
from xi_plugins.engines.llama_cpp.gbnf import to_gbnf

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_DROPPED = ("oneOf", "pattern", *_BOUNDS)
"""Keywords that llama.cpp's converter of tools' schemas doesn't keep, the bounds only for the type `number`."""
_ORDER = ["penalties", "temperature", "top_k", "top_p", "min_p"]
"""xi's order of samplers; llama.cpp applies `logit_bias` before all of them."""
_SPREAD = 0x9E3779B1
"""An odd number with bits all over, so that the upper half of a seed changes all of the lower one."""
_GREEDY_BELOW = 1e-5
"""Temperatures below this mean greedy, as in xi's other engines: divided by a still smaller one, llama.cpp's numbers overflow."""
_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp takes this seed for "none given"."""


class Limits(Struct, kw_only=True, frozen=True):
    """What the loaded model allows."""

    context_length: int
    vocabulary_size: int
    stops: tuple[str, ...] = ()
    """The model's own stop strings, which may be special tokens."""


def to_llama(request: ApiRequest, limits: Limits, *, cache_prompt: bool = True) -> dict[str, Any]:
    """The body for llama.cpp's server. Raises `InvalidRequest` for what the model can't take."""
    body = request.body
    asked = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "timings_per_token": False,
        "post_sampling_probs": False,
        "cache_prompt": cache_prompt and body.get("seed") is None,
        "max_tokens": body.get("max_tokens") or limits.context_length,
        "stop": body.get("stop") or [],
        "ignore_eos": bool(body.get("ignore_eos")),
        **_sampling(body, limits),
    }
    if body.get("seed") is not None:
        asked["seed"] = _seed(body["seed"])
    if body.get("logit_bias"):
        asked["logit_bias"] = _biases(body["logit_bias"], limits)
    grammar = grammar_in(body)
    if grammar is not None:
        asked["grammar"] = to_gbnf(grammar)
    return asked | (_chat(body) if request.route == CHAT else _completion(body, limits))


def wants_logprobs(body: dict[str, Any]) -> bool:
    """Whether the answer's tokens are to carry their log-probabilities: chat says `true`, completions a number that may be 0."""
    return body.get("logprobs") is not None and body["logprobs"] is not False


def _sampling(body: dict[str, Any], limits: Limits) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "presence_penalty": body.get("presence_penalty", 0.0),
        "frequency_penalty": body.get("frequency_penalty", 0.0),
        "repeat_penalty": body.get("repetition_penalty", 1.0),
        "repeat_last_n": limits.context_length,
    }
    temperature = body.get("temperature", 1.0)
    if temperature < _GREEDY_BELOW:  # greedy: the likeliest token, without sorting the vocabulary
        return asked | {"samplers": ["penalties", "top_k"], "top_k": 1, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
    return asked | {
        "samplers": _ORDER,
        "temperature": temperature,
        "top_k": min(max(0, body.get("top_k", 0)), limits.vocabulary_size),
        "top_p": body.get("top_p", 1.0),
        "min_p": body.get("min_p", 0.0),
    }


def _seed(seed: int) -> int:
    """Any 64-bit seed as one of llama.cpp's 32-bit seeds; neighbours, as the choices of one request have them, stay apart."""
    folded = (seed ^ (seed >> 32) * _SPREAD) & 0xFFFFFFFF
    return folded if folded != _RANDOM_SEED else _RANDOM_SEED - 1


def _biases(given: dict[str, float], limits: Limits) -> list[list[float]]:
    biases = [[int(token), bias] for token, bias in given.items()]
    for token, _ in biases:
        if not 0 <= token < limits.vocabulary_size:
            raise InvalidRequest(
                f"logit_bias: {token:.0f} is no token of this model; ids are below {limits.vocabulary_size}", param="logit_bias"
            )
    return biases


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    asked: dict[str, Any] = {"messages": [_message(message) for message in body["messages"]]}
    if wants_logprobs(body):  # 0 alternatives would turn them off; the serving layer cuts what wasn't asked for
        asked |= {"logprobs": True, "top_logprobs": max(1, body.get("top_logprobs") or 0)}
    if body.get("chat_template_kwargs"):
        asked["chat_template_kwargs"] = body["chat_template_kwargs"]
    return asked | _tools(body)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """`developer` is OpenAI's newer name of the system role; chat templates know only the old one."""
    return message | {"role": "system"} if message.get("role") == "developer" else message


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools or choice == "none":
        return {}
    if wants_logprobs(body):
        raise UnsupportedField("logprobs: engine llama.cpp gives no log-probabilities where tools may be called", param="logprobs")
    if isinstance(choice, dict):  # llama.cpp reads a named choice as "auto": offer that tool alone, and require it
        name = choice["function"]["name"]
        tools, choice = [tool for tool in tools if tool["function"]["name"] == name], "required"
    asked = [_tool(tool, place) for place, tool in enumerate(body["tools"]) if tool in tools]
    return {
        "tools": asked,
        "tool_choice": choice or "auto",
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "timings_per_token": True,  # an answer whose calls can't be read to their end tells its usage by them
    }


def _tool(tool: dict[str, Any], place: int) -> dict[str, Any]:
    """A tool as llama.cpp holds calls to it. A strict one's schema in the small form, of which it keeps all but what is refused here."""
    function = tool["function"]
    if not function.get("strict") or not function.get("parameters"):
        return tool
    param = f"tools[{place}].function.parameters"
    schema = normalise(function["parameters"], param)
    lost = _lost(schema)
    if lost is not None:
        raise UnsupportedField(
            f"{param}: engine llama.cpp can't hold the calls of a strict tool to '{lost}'; leave it or strict out", param=param
        )
    return {**tool, "function": {**function, "parameters": spelled(schema)}}


def _lost(schema: Any) -> str | None:
    """A keyword that llama.cpp's own converter drops; a property may have the same name."""
    if isinstance(schema, list):
        return next((lost for part in schema if (lost := _lost(part)) is not None), None)
    if not isinstance(schema, dict):
        return None
    if "enum" in schema:
        return None
    own = next((name for name in _DROPPED if name in schema and (name not in _BOUNDS or schema.get("type") == "number")), None)
    inner = [part for name in OF_NAMES for part in schema.get(name, {}).values()]
    return own or _lost([*inner, *(schema[name] for name in OF_SCHEMAS if name in schema)])


def _completion(body: dict[str, Any], limits: Limits) -> dict[str, Any]:
    if not body["prompt"]:
        raise InvalidRequest("prompt is empty; it needs at least one token", param="prompt")
    asked: dict[str, Any] = {"prompt": body["prompt"]}
    special = [stop for stop in limits.stops if stop in (body.get("stop") or ())]
    if special:  # a token of this name gets a text, which is then found; chats have no such field
        asked["preserved_tokens"] = special
    if wants_logprobs(body):
        asked["logprobs"] = max(1, body["logprobs"])
    return asked


# ---- errors -------------------------------------------------------------------------------------


class _Error(Struct):
    message: str = ""
    code: int = 500
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _Failure(Struct):
    error: _Error = field(default_factory=_Error)


class Refusal(Struct, kw_only=True):
    """Why a request failed, as `ApiSink.failed` takes it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None


_NO_GRAMMAR = "{} can't be compiled to a grammar: {}"
_LEFT_GRAMMAR = "the answer could not be kept to {}; a logit_bias for tokens that it doesn't allow may be why: {}"
_decode = msgspec.json.Decoder(_Failure).decode


def constraint_of(body: dict[str, Any]) -> str:
    """The field that a request's grammar comes from; where it has none, that which llama.cpp itself makes one of."""
    grammar = grammar_in(body)
    return "tools" if grammar is None else grammar.param


def refusal(data: str, route: str, constraint: str = "tools") -> Refusal:
    """llama.cpp's error object in xi's words."""
    error = _decode(data).error
    prompt = "messages" if route == CHAT else "prompt"
    if error.type == "exceed_context_size_error":
        return Refusal(
            status=400,
            message=f"the prompt has {error.n_prompt_tokens} tokens, but this model's context holds {error.n_ctx}, answer included; "
            "shorten the prompt, or launch the model with a larger context_length",
            param=prompt,
            code=ContextLengthExceeded.code,
        )
    if "invalid tokens" in error.message:
        return Refusal(status=400, message="the prompt holds ids that are no tokens of this model", param=prompt)
    if "empty grammar stack" in error.message:
        return Refusal(status=400, message=_LEFT_GRAMMAR.format(constraint, error.message), param=constraint)
    if "grammar" in error.message:
        return Refusal(status=400, message=_NO_GRAMMAR.format(constraint, error.message), param=constraint)
    if 400 <= error.code < 500:
        return Refusal(status=400, message=f"llama.cpp refused the request: {error.message}")
    return Refusal(status=500, message=f"llama.cpp failed: {error.message}")


def refusal_of(error: Exception, route: str, constraint: str = "tools") -> Refusal:
    """What llama.cpp raised before the request had a slot: while it rendered the template or compiled the tools' grammar."""
    text = str(error)
    if isinstance(error, RecursionError):
        return Refusal(status=400, message="the request is nested too deeply", param=constraint if route == CHAT else None)
    if "schema" in text or "grammar" in text:
        return Refusal(status=400, message=_NO_GRAMMAR.format(constraint, text), param=constraint)
    if "tool call arguments" in text:
        return Refusal(status=400, message="a tool call in the messages has arguments that are not JSON", param="messages")
    if isinstance(error, ValueError) or "template" in text.lower() or "jinja" in text.lower():
        param = "messages" if route == CHAT else "prompt"
        return Refusal(status=400, message=f"llama.cpp refused the request: {text}", param=param)
    return Refusal(status=500, message=f"llama.cpp failed: {text}")
