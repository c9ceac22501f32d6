"""`ApiService`: OpenAI semantics over an `ApiEngine`. xi validates, queues, fans out `n` and rewrites the engine's events."""

from __future__ import annotations

import itertools
import re
from typing import Any

import msgspec
from msgspec import Struct, field

from xi_core.api.openai import Message, TokenLogprob, TopLogprob
from xi_core.engine.base import ApiEngine, ApiRequest, LoadedModel
from xi_core.errors import EngineError, XiError
from xi_core.serving.delta import Delta
from xi_core.serving.engine_slots import Done, EngineSlots, Failed, Part
from xi_core.serving.model_stops import NO_STOPS, ModelStops, by_files
from xi_core.serving.parser import ToolCallDelta
from xi_core.serving.request import Job, message_text
from xi_core.serving.service import GenerationService, Running
from xi_core.serving.structured import engine_fields
from xi_core.wire.plan import LaunchPlan

_MADE_UP = re.compile(r"(?:call_|chatcmpl-tool-)[0-9a-f]{16,}")
"""Ids of calls that vLLM and SGLang give where the model's form has none."""

# ---- what is read of an engine's events -----------------------------------------------------------


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int = 0
    id: str | None = None
    function: _Function = field(default_factory=_Function)


class _EventDelta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Top(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Logprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Top] = field(default_factory=list)


class _Logprobs(Struct):
    content: list[_Logprob] | None = None


class _EventChoice(Struct):
    delta: _EventDelta | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Event(Struct):
    """One event of an engine's stream, chat or completion form."""

    choices: list[_EventChoice] = field(default_factory=list)
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None


_decode = msgspec.json.Decoder(Event).decode


# ---- the service ----------------------------------------------------------------------------------


class _Part(Part[Running]):
    """One choice of a request."""

    __slots__ = ("finish", "ids", "index", "prompt", "tokens")

    def __init__(self, body: ApiRequest, run: Running, index: int) -> None:
        super().__init__(body, run)
        self.index = index
        self.prompt = run.job.prompt_of(index)
        self.finish: str | None = None
        self.ids: list[int] = []
        """Of tokens that no delta has told of yet."""
        self.tokens = 0


class ApiService(GenerationService):
    """Serves requests over an API engine, never more at once than it has slots. Call on the loop."""

    def __init__(self, plan: LaunchPlan, engine: ApiEngine, model: LoadedModel) -> None:
        super().__init__(plan, engine, model)
        self._stops = by_files(plan)
        self._ids = itertools.count(1)
        self._slots: EngineSlots[_Part] = EngineSlots(engine, model.slots, self._attempt, self._event, self._ended)

    def close(self, grace: float) -> None:
        self._engine.close(grace)

    def _defaults(self) -> dict[str, Any]:
        return self.model.sampling

    def _counts(self) -> tuple[int, int]:
        return self._slots.counts()

    def _start(self, run: Running) -> None:
        job, parts = run.job, []
        for index in range(job.choices):
            body = engine_body(job, index, self._stops)
            if "max_tokens" in body:  # some engines refuse more than the context, where xi's answers are cut to it
                body["max_tokens"] = min(body["max_tokens"], self.model.context_length)
            request = ApiRequest(id=next(self._ids), route=_route(job), body=body, adapter=job.adapter)
            parts.append(_Part(request, run, index))
        self._slots.queue(parts)
        self._slots.admit()

    def _stop_part(self, part: int) -> None:
        self._slots.stop(part)

    def _event(self, part: _Part, data: bytes | str) -> None:
        try:
            event = _decode(data)
        except msgspec.DecodeError as error:
            self.fail(part.run, EngineError(f"the engine sent an event that can't be read: {error}"))
            return
        if event.usage is not None:
            part.run.read(part.prompt, event.usage.prompt_tokens)
            part.tokens = event.usage.completion_tokens
        for choice in event.choices:
            part.finish = choice.finish_reason or part.finish
            delta = _delta(part, choice)
            if part.run.job.token_ids:
                _take_ids(part, event, choice)
            if delta.shows():
                delta.token_ids, part.ids = part.ids, []
                self._deliver(part.run, delta)

    def _ended(self, part: _Part, item: Done | Failed) -> None:
        """The finish is delivered last, when the usage is known."""
        if isinstance(item, Failed):
            self.fail(part.run, part.run.job.blame(part.prompt, XiError.from_body(item.error)))
        elif part.finish is None:
            self.fail(part.run, EngineError("the engine ended the answer without a finish reason"))
        else:
            self._deliver(part.run, Delta(index=part.index, finish=part.finish, tokens=part.tokens, token_ids=part.ids))


def _route(job: Job) -> str:
    return "/v1/chat/completions" if job.kind == "chat" else "/v1/completions"


def engine_body(job: Job, index: int, stops: ModelStops = NO_STOPS) -> dict[str, Any]:
    """The body for one choice: every sampling field spelled out, absent fields absent. `stops`: the model's own."""
    counted = stops.of(job)
    body: dict[str, Any] = {**job.sampling, "stop": list(counted.strings), "ignore_eos": job.ignore_eos}
    if counted.ids:
        body["stop_token_ids"] = sorted(counted.ids)
    if job.max_tokens is not None:
        body["max_tokens"] = job.max_tokens
    if job.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in job.logit_bias.items()}
    if job.seed is not None:
        body["seed"] = job.seed_of(index)
    if job.token_ids:
        body["return_token_ids"] = True
    if job.grammar is not None:
        body |= engine_fields(job.grammar)
    if job.kind == "chat":
        body["messages"] = [_message(message) for message in job.chat.messages]
        if job.variables:
            body["chat_template_kwargs"] = job.variables
        if job.tools:
            body["tools"] = job.tools
            if job.chat.tool_choice is not None:
                body["tool_choice"] = msgspec.to_builtins(job.chat.tool_choice)
            if job.one_call:
                body["parallel_tool_calls"] = False
        if job.logprobs is not None:
            body["logprobs"], body["top_logprobs"] = True, job.logprobs
    else:
        body["prompt"] = job.prompts[job.prompt_of(index)]
        if job.logprobs is not None:
            body["logprobs"] = job.logprobs
    return body


def _telling(id: str | None) -> str | None:
    """A call's id, unless the server has made it up: then xi's own, which templates of all families take, is as good."""
    return None if id is None or _MADE_UP.fullmatch(id) else id


def _message(message: Message) -> dict[str, Any]:
    """A message with its content as one text, so that it reads the same in every engine."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    if message.content is not None or not message.tool_calls:
        plain["content"] = message_text(message)
    for call in plain.get("tool_calls") or []:
        call["function"]["arguments"] = call["function"]["arguments"] or "{}"
    return plain


def _take_ids(part: _Part, event: Event, choice: _EventChoice) -> None:
    """Ids as vLLM tells them: the prompt's once, in chats beside the choices and in completions within them."""
    prompt = event.prompt_token_ids or choice.prompt_token_ids
    if prompt:
        part.run.answer.prompt_ids[part.prompt] = prompt
    part.ids.extend(choice.token_ids or [])


def _delta(part: _Part, choice: _EventChoice) -> Delta:
    """The event's news, without its finish, which waits for the usage."""
    delta = Delta(index=part.index, text=choice.text or "")
    if choice.delta is not None:
        delta.text = choice.delta.content or ""
        delta.reasoning = choice.delta.reasoning_content or ""
        delta.tool_calls = [
            ToolCallDelta(index=call.index, name=call.function.name, arguments=call.function.arguments or "", id=_telling(call.id))
            for call in choice.delta.tool_calls or []
            if call.index == 0 or not part.run.job.one_call  # some engines don't honour it
        ]
    wanted = part.run.job.logprobs
    if choice.logprobs is not None and wanted is not None:
        delta.logprobs = [_logprob(entry, wanted) for entry in choice.logprobs.content or []]
    return delta


def _logprob(entry: _Logprob, wanted: int) -> TokenLogprob:
    return TokenLogprob(
        token=entry.token,
        logprob=entry.logprob,
        bytes=entry.bytes if entry.bytes is not None else list(entry.token.encode()),
        top_logprobs=[
            TopLogprob(token=top.token, logprob=top.logprob, bytes=top.bytes if top.bytes is not None else list(top.token.encode()))
            for top in entry.top_logprobs[:wanted]
        ],
    )
