"""`Harness`: an engine under the serving layer, in this process, behind plain synchronous calls.

with Harness(plan) as harness:
    answer = harness.chat("What is 2 + 2?", temperature=0)
    print(answer.text, answer.usage)
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from copy import copy
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from xi_core.engine.base import Engine, LoadedModel
from xi_core.errors import DeadlineExceeded
from xi_core.importing import import_path
from xi_core.replica.process import service_for
from xi_core.serving.progress import probe
from xi_core.serving.request import CHAT, COMPLETIONS
from xi_core.serving.service import Run, Service
from xi_core.wire.frames import Data, End, Frame, Load, Open, Submit
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan

T = TypeVar("T")


def plan_for(engine: str, path: str, format: str, name: str = "under-test", **options: Any) -> LaunchPlan:
    """A launch plan for tests: `engine` is `module:Class`, `path` the artifact."""
    return LaunchPlan(
        uid=name,
        replica_id=f"{name}-0",
        incarnation="test",
        engine=EngineRef(name=engine.rpartition(":")[2], path=engine),
        artifact=Artifact(format=format, path=path),
        endpoint="inproc://test",
        options=options,
    )


class Answer:
    """A finished answer: status, the body or the streamed events, and what they say."""

    def __init__(self, frames: list[Frame]) -> None:
        opened = next(frame for frame in frames if isinstance(frame, Open))
        self.frames = frames
        self.status = opened.status
        self.content_type = opened.content_type
        self.prompt_tokens = opened.prompt_tokens
        self.raw = b"".join(frame.data for frame in frames if isinstance(frame, Data))
        self.streamed = opened.content_type == "text/event-stream"
        self.events = _events(self.raw) if self.streamed else []
        self.body: dict[str, Any] = {} if self.streamed else msgspec.json.decode(self.raw)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error object, of a refused request or within a stream."""
        if self.streamed:
            return next((event["error"] for event in self.events if "error" in event), None)
        return self.body.get("error")

    def only(self, index: int) -> Answer:
        """The same answer with one of its choices, as the first: what is told of the first is told of that one."""
        found = copy(self)
        found.body, *found.events = [_only(said, index) for said in (self.body, *self.events)]
        return found

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.texts[0]

    @property
    def texts(self) -> list[str]:
        """Each choice's text."""
        if not self.streamed:
            return [choice["text"] if "text" in choice else choice["message"]["content"] or "" for choice in self.body["choices"]]
        texts: dict[int, str] = {}
        for choice in self._choices():
            piece = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
        return [texts[index] for index in sorted(texts)]

    @property
    def finishes(self) -> list[str]:
        """Each choice's finish reason."""
        choices = self._choices() if self.streamed else self.body["choices"]
        found = {choice["index"]: choice["finish_reason"] for choice in choices if choice["finish_reason"]}
        return [found[index] for index in sorted(found)]

    @property
    def usage(self) -> dict[str, int]:
        """Token counts, without their details; of a stream only where `stream_options` asked for them."""
        usages = (event["usage"] for event in reversed(self.events) if event.get("usage"))
        usage = next(usages) if self.streamed else self.body["usage"]
        return {name: count for name, count in usage.items() if isinstance(count, int)}

    @property
    def logprobs(self) -> list[dict[str, Any]]:
        """Entries of the first choice, in chat's form whichever the answer has."""
        choices = self._choices() if self.streamed else self.body["choices"]
        return [entry for choice in choices if choice["index"] == 0 and choice["logprobs"] for entry in _entries(choice["logprobs"])]

    @property
    def tool_calls(self) -> list[dict[str, str]]:
        """`name` and `arguments` of the first choice's calls."""
        choices = self._choices() if self.streamed else self.body["choices"]
        found: dict[int, dict[str, str]] = {}
        for choice in choices:
            said = choice["delta"] if self.streamed else choice["message"]
            for place, call in enumerate(said.get("tool_calls") or [] if choice["index"] == 0 else []):
                whole = found.setdefault(call.get("index", place), {"name": "", "arguments": ""})
                for part in whole:
                    whole[part] += call["function"].get(part) or ""
        return [found[index] for index in sorted(found)]

    @property
    def token_ids(self) -> list[int]:
        """Those of the first choice, where `return_token_ids` asked for them."""
        choices = self._choices() if self.streamed else self.body["choices"]
        return [token for choice in choices if choice["index"] == 0 for token in choice["token_ids"]]

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt's, which chats tell beside the choices and completions within each."""
        told = [self.body] if not self.streamed else self.events
        places = [*told, *(choice for event in told for choice in event.get("choices", []) if choice["index"] == 0)]
        (ids,) = [place["prompt_token_ids"] for place in places if "prompt_token_ids" in place]
        found: list[int] = ids
        return found

    def _choices(self) -> list[dict[str, Any]]:
        return [choice for event in self.events for choice in event.get("choices", [])]


def _only(said: dict[str, Any], index: int) -> dict[str, Any]:
    """A body or an event, of whose choices one is left."""
    choices = [{**choice, "index": 0} for choice in said.get("choices", []) if choice["index"] == index]
    return {**said, "choices": choices} if "choices" in said else said


def _entries(logprobs: dict[str, Any]) -> list[dict[str, Any]]:
    if "content" in logprobs:
        content: list[dict[str, Any]] = logprobs["content"]
        return content
    lists = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    return [{"token": token, "logprob": value, "top_logprobs": _alternatives(top)} for token, value, top in lists]


def _alternatives(top: dict[str, float]) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": value} for token, value in top.items()]


def _events(raw: bytes) -> list[dict[str, Any]]:
    events = [part.removeprefix(b"data: ") for part in raw.split(b"\n\n") if part]
    return [msgspec.json.decode(event) for event in events if event != b"[DONE]"]


class Call:
    """A request on its way."""

    def __init__(self, harness: Harness, id: int) -> None:
        self.id = id
        self.frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.run: Run | None = None
        self._harness = harness

    def first(self, timeout: float = 60.0) -> Frame:
        """The next frame. Raises `DeadlineExceeded`."""
        try:
            return self.frames.get(timeout=timeout)
        except queue.Empty:
            raise DeadlineExceeded(f"no frame within {timeout:.0f} s") from None

    def answer(self, timeout: float = 60.0) -> Answer:
        """Wait for the end."""
        frames: list[Frame] = []
        while not frames or not isinstance(frames[-1], End):
            frames.append(self.first(timeout))
        return Answer(frames)

    def abort(self) -> None:
        """Leave, as a client would."""
        self._harness.abort(self)


class Harness:
    """Loads the plan's engine and serves it on a loop in a thread of its own."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.plan = plan
        self.stages: list[str] = []
        self.trace: list[Frame] | None = None
        """Set it to a list to have the frames of all requests in the order in which they come."""
        self._ids = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="harness", daemon=True)
        self.engine: Engine = import_path(plan.engine.path)()
        self.model: LoadedModel
        self.service: Service

    def __enter__(self) -> Harness:
        self.model = self.engine.load(self.plan, lambda stage, _: self.stages.append(stage))
        self._thread.start()

        async def make() -> Service:
            return service_for(self.plan, self.engine, self.model)

        self.service = self._await(make())
        self.model = self.service.model
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and the loop. Idempotent."""
        if self._loop.is_closed():
            return
        self._on_loop(lambda: self.service.close(5.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    def submit(self, route: str, body: dict[str, Any] | bytes) -> Call:
        """Start a request."""
        call = Call(self, next(self._ids))
        data = body if isinstance(body, bytes) else msgspec.json.encode({"model": self.plan.uid, **body})

        def put(frame: Frame) -> None:
            if self.trace is not None:
                self.trace.append(frame)
            call.frames.put(frame)

        call.run = self._on_loop(lambda: self.service.submit(Submit(call.id, route, data), put))
        return call

    def abort(self, call: Call) -> None:
        """Abort a request as the replica's server does when the client has left."""
        run = call.run
        if run is not None:
            self._on_loop(lambda: self.service.abort(run))

    def chat(self, prompt: str | list[dict[str, Any]], **fields: Any) -> Answer:
        """A chat request and its answer; a text is one user message."""
        return self.start_chat(prompt, **fields).answer()

    def start_chat(self, prompt: str | list[dict[str, Any]], **fields: Any) -> Call:
        """Start a chat request."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return self.submit(CHAT, {"messages": messages, **fields})

    def complete(self, prompt: str | list[int], **fields: Any) -> Answer:
        """A completions request and its answer."""
        return self.submit(COMPLETIONS, {"prompt": prompt, **fields}).answer()

    def load(self) -> Load:
        """The live counters."""
        return self._on_loop(self.service.load)

    def wait_idle(self, timeout: float = 5.0) -> Load:
        """Wait until nothing runs or waits. Raises `DeadlineExceeded`."""
        deadline = time.monotonic() + timeout
        while (load := self.load()).running or load.waiting:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"after {timeout:g} s still {load.running} running and {load.waiting} waiting")
            time.sleep(0.01)
        return load

    def probe(self, timeout: float = 60.0) -> None:
        """The replica's own readiness check."""
        self._await(probe(self.service, timeout))

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120.0)

    def _on_loop(self, call: Callable[[], T]) -> T:
        async def run() -> T:
            return call()

        return self._await(run())
