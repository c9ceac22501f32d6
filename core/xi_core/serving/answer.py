"""Answers: deltas in, bytes of OpenAI's API out. Four forms: chat and completions, each streamed (SSE events) or as one body.

Streamed chunks are spliced from constant parts: per chunk only the text is encoded. Forms: https://platform.openai.com/docs/api-reference/chat/streaming
and https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from xi_core.api import openai as api
from xi_core.errors import ErrorBody, envelope
from xi_core.serving.delta import Delta
from xi_core.serving.parser import ToolCallDelta
from xi_core.serving.request import Job

SSE = "text/event-stream"
JSON = "application/json"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.encode


class Answer(ABC):
    """One request's answer. `add` gives the bytes to send now; `end` those that complete it."""

    content_type = JSON

    def __init__(self, job: Job, model: str) -> None:
        prefix = "chatcmpl" if job.kind == "chat" else "cmpl"
        self.job = job
        self.model = model
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.prompt_ids: list[list[int]] = [[] for _ in job.prompts]
        """Each prompt's tokens, known before its first delta; told where `job.token_ids` asks for them."""

    @abstractmethod
    def add(self, delta: Delta) -> bytes:
        """Take a delta in."""

    @abstractmethod
    def end(self, usage: api.Usage) -> bytes:
        """All choices are finished."""


def answer_for(job: Job, model: str, echoed: Sequence[str] = ()) -> Answer:
    """The right form for `job`. `echoed`: the texts that an echoing completion's choices begin with, one per prompt."""
    if job.kind == "chat":
        return ChatStream(job, model) if job.stream else ChatBody(job, model)
    return CompletionStream(job, model, echoed) if job.stream else CompletionBody(job, model, echoed)


def sse(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def error_event(body: ErrorBody) -> bytes:
    """An error within a stream: the envelope as an event, after which nothing comes."""
    return sse(envelope(body))


# ---- streamed -----------------------------------------------------------------------------------


class _Stream(Answer):
    content_type = SSE
    object = ""

    def __init__(self, job: Job, model: str) -> None:
        super().__init__(job, model)
        head = _encode({"id": self.id, "object": self.object, "created": self.created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if job.include_usage else b"}]}\n\n"
        self._usage_head = b"data: " + head[:-1] + b',"choices":[],"usage":'

    def end(self, usage: api.Usage) -> bytes:
        if not self.job.include_usage:
            return DONE
        return self._usage_head + _encode(usage) + b"}\n\n" + DONE


class ChatStream(_Stream):
    """`chat.completion.chunk` events. The role rides on each choice's first chunk."""

    object = "chat.completion.chunk"

    def __init__(self, job: Job, model: str) -> None:
        super().__init__(job, model)
        self._begun = [False] * job.n
        self._told = False

    def add(self, delta: Delta) -> bytes:
        shows = bool(delta.text or delta.reasoning or delta.tool_calls or delta.logprobs)
        chunks, ids = b"", delta.token_ids
        if shows or (delta.finish and not self._begun[delta.index]):
            chunks, ids = self._chunk(delta.index, self._content(delta), self._logprobs(delta), b"null", ids), []
        if delta.finish:
            chunks += self._chunk(delta.index, b"{}", b"null", _encode(delta.finish), ids)
        return chunks

    def _chunk(self, index: int, content: bytes, logprobs: bytes, finish: bytes, ids: list[int]) -> bytes:
        parts = (b"%d" % index, b',"delta":', content, b',"logprobs":', logprobs, b',"finish_reason":', finish)
        return self._head + b"".join(parts) + (self._tail_with(ids) if self.job.token_ids else self._tail)

    def _tail_with(self, ids: list[int]) -> bytes:
        """The end of a chunk that tells token ids; those of the prompt stand in the first, beside the choices."""
        prompt = b"" if self._told else b',"prompt_token_ids":' + _encode(self.prompt_ids[0])
        self._told = True
        return b',"token_ids":' + _encode(ids) + b"}]" + prompt + self._tail.removeprefix(b"}]")

    def _content(self, delta: Delta) -> bytes:
        role = b""
        if not self._begun[delta.index]:
            self._begun[delta.index] = True
            role = b'"role":"assistant",'
        if not delta.reasoning and not delta.tool_calls:
            return b"{" + role + b'"content":' + _encode(delta.text) + b"}"
        fields: dict[str, Any] = {"content": delta.text or None} if delta.text or role else {}
        if delta.reasoning:
            fields["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            fields["tool_calls"] = [_tool_chunk(call) for call in delta.tool_calls]
        return b"{" + role + _encode(fields)[1:]

    @staticmethod
    def _logprobs(delta: Delta) -> bytes:
        return _encode(api.ChatLogprobs(content=delta.logprobs)) if delta.logprobs else b"null"


class CompletionStream(_Stream):
    """`text_completion` events."""

    object = "text_completion"

    def __init__(self, job: Job, model: str, echoed: Sequence[str]) -> None:
        super().__init__(job, model)
        self._echo = _echo(job, echoed)
        self._offsets = [0] * job.choices
        self._told = [not job.token_ids] * job.choices

    def add(self, delta: Delta) -> bytes:
        echo, self._echo[delta.index] = self._echo[delta.index], ""
        text = echo + delta.text
        if not text and not delta.logprobs and not delta.finish:
            return b""
        logprobs = b"null"
        if delta.logprobs:
            logprobs = _encode(completion_logprobs(delta.logprobs, self._offsets[delta.index]))
            self._offsets[delta.index] += sum(len(entry.token) for entry in delta.logprobs)
        finish = _encode(delta.finish)
        ids = self._ids(delta) if self.job.token_ids else b""
        parts = (b"%d" % delta.index, b',"text":', _encode(text), b',"logprobs":', logprobs, b',"finish_reason":', finish, ids)
        return self._head + b"".join(parts) + self._tail

    def _ids(self, delta: Delta) -> bytes:
        """Ids of tokens; those of the prompt stand in each choice's first chunk."""
        ids = self.prompt_ids[self.job.prompt_of(delta.index)]
        prompt = b"" if self._told[delta.index] else b',"prompt_token_ids":' + _encode(ids)
        self._told[delta.index] = True
        return b',"token_ids":' + _encode(delta.token_ids) + prompt


def _echo(job: Job, echoed: Sequence[str]) -> list[str]:
    """What each choice begins with."""
    return [echoed[job.prompt_of(index)] if echoed else "" for index in range(job.choices)]


def _tool_chunk(call: ToolCallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id or call_id(), "type": "function", "function": function}


def call_id() -> str:
    """A fresh id of a tool call: nine letters and digits, for the templates of Mistral's models take no others when it comes back."""
    return uuid.uuid4().hex[:9]


def completion_logprobs(entries: list[api.TokenLogprob], offset: int = 0) -> api.CompletionLogprobs:
    """The older form of log-probabilities: parallel lists, with each token's offset in the text."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.token)
    return api.CompletionLogprobs(
        tokens=[entry.token for entry in entries],
        token_logprobs=[entry.logprob for entry in entries],
        top_logprobs=[_by_text(entry.top_logprobs) for entry in entries],
        text_offset=offsets,
    )


def _by_text(tops: list[api.TopLogprob]) -> dict[str, float]:
    """Of tokens with the same text the likeliest, which comes first."""
    found: dict[str, float] = {}
    for top in tops:
        found.setdefault(top.token, top.logprob)
    return found


# ---- as one body --------------------------------------------------------------------------------


class _Gathered:
    """What one choice has come to."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[api.ToolCall] = []
        self.logprobs: list[api.TokenLogprob] = []
        self.ids: list[int] = []
        self.finish = "stop"

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        self.logprobs.extend(delta.logprobs)
        self.ids.extend(delta.token_ids)
        self.finish = delta.finish or self.finish
        for piece in delta.tool_calls:
            if piece.name is not None:
                function = api.CalledFunction(name=piece.name, arguments=piece.arguments)
                self.calls.append(api.ToolCall(id=piece.id or call_id(), function=function))
            else:
                self.calls[piece.index].function.arguments += piece.arguments


class _Body(Answer):
    def __init__(self, job: Job, model: str) -> None:
        super().__init__(job, model)
        self._choices = [_Gathered() for _ in range(job.choices)]

    def add(self, delta: Delta) -> bytes:
        self._choices[delta.index].add(delta)
        return b""

    def _told(self, ids: list[int]) -> list[int] | msgspec.UnsetType:
        """Token ids, where the request wants them."""
        return ids if self.job.token_ids else msgspec.UNSET


class ChatBody(_Body):
    """A whole `chat.completion`."""

    def end(self, usage: api.Usage) -> bytes:
        choices = [
            api.ChatChoice(
                index=index,
                message=self._message(one),
                logprobs=api.ChatLogprobs(content=one.logprobs) if self.job.logprobs is not None else None,
                finish_reason=one.finish,
                token_ids=self._told(one.ids),
            )
            for index, one in enumerate(self._choices)
        ]
        prompt = self._told(self.prompt_ids[0])
        answer = api.ChatCompletion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage, prompt_token_ids=prompt
        )
        return _encode(answer)

    @staticmethod
    def _message(one: _Gathered) -> api.AnswerMessage:
        text = "".join(one.text)
        message = api.AnswerMessage(content=text if text or not one.calls else None)
        if one.calls:
            message.tool_calls = one.calls
        if one.reasoning:
            message.reasoning_content = "".join(one.reasoning)
        return message


class CompletionBody(_Body):
    """A whole `text_completion`."""

    def __init__(self, job: Job, model: str, echoed: Sequence[str]) -> None:
        super().__init__(job, model)
        self._echo = _echo(job, echoed)

    def end(self, usage: api.Usage) -> bytes:
        choices = [
            api.CompletionChoice(
                index=index,
                text=self._echo[index] + "".join(one.text),
                logprobs=completion_logprobs(one.logprobs) if self.job.logprobs is not None else None,
                finish_reason=one.finish,
                token_ids=self._told(one.ids),
                prompt_token_ids=self._told(self.prompt_ids[self.job.prompt_of(index)]),
            )
            for index, one in enumerate(self._choices)
        ]
        return _encode(api.Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage))
