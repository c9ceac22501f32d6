"""The engine `llama.cpp` on the real library and the shipped xi-tiny, with its requests and answers."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import xi_plugins.families
from xi_core.engine.base import ApiRequest, ApiSink, LoadedModel
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan
from xi_plugins.engines.llama_cpp.engine import LlamaCppEngine
from xi_plugins.engines.llama_cpp.translate import CHAT, COMPLETIONS

MODEL = Path(next(iter(xi_plugins.families.__path__))) / "xi_tiny" / "xi-tiny-f16.gguf"
EXPECTED = json.loads((Path(__file__).parents[1] / "data" / "xi_tiny_expected.json").read_text("utf-8"))
GREEDY: dict[str, Any] = {
    "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0, "stop": [], "ignore_eos": False,
}  # fmt: skip
WAIT = 30.0


class Sink(ApiSink):
    """Collects what an engine says; `ends` holds "done" or the failure of each request."""

    def __init__(self) -> None:
        self.events: dict[int, list[str]] = defaultdict(list)
        self.ends: dict[int, Any] = {}
        self.news = threading.Condition()

    def event(self, id: int, data: bytes | str) -> None:
        assert isinstance(data, str)
        with self.news:
            assert id not in self.ends, "nothing comes after the end"
            self.events[id].append(data)
            self.news.notify_all()

    def done(self, id: int) -> None:
        self._end(id, "done")

    def failed(self, id: int, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        self._end(id, (status, message, param, code))

    def _end(self, id: int, end: Any) -> None:
        with self.news:
            assert id not in self.ends, "a request ends once"
            self.ends[id] = end
            self.news.notify_all()

    def wait(self, *ids: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: all(id in self.ends for id in ids), WAIT)

    def wait_events(self, id: int, count: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: len(self.events[id]) >= count, WAIT)


class Loaded:
    """A loaded engine and its requests."""

    def __init__(self, endpoint: str = "inproc://test", chat_template: str | None = None, path: Path = MODEL, **options: Any) -> None:
        self.engine = LlamaCppEngine()
        self.stages: list[str] = []
        self.sink = Sink()
        self._last = 0
        plan = LaunchPlan(
            uid="m",
            replica_id="m-0",
            incarnation="i",
            engine=EngineRef(name="llama.cpp", path="-"),
            artifact=Artifact(format="ggufv2", path=str(path)),
            endpoint=endpoint,
            options=options,
            chat_template=chat_template,
        )
        self.model: LoadedModel = self.engine.load(plan, lambda stage, _: self.stages.append(stage))

    def start(self, prompt: str | list[int] | None = None, **fields: Any) -> int:
        self._last += 1
        body = {**GREEDY, **({"prompt": prompt} if prompt is not None else {}), **fields}
        self.engine.submit(ApiRequest(id=self._last, route=COMPLETIONS if prompt is not None else CHAT, body=body), self.sink)
        return self._last

    def ask(self, prompt: str | list[int] | None = None, **fields: Any) -> Answer:
        id = self.start(prompt, **fields)
        self.sink.wait(id)
        return self.answer(id)

    def chat(self, text: str, **fields: Any) -> Answer:
        return self.ask(messages=question(text), **fields)

    def answer(self, id: int) -> Answer:
        return Answer(self.sink.events[id], self.sink.ends[id])


class Answer:
    """One request's events, read."""

    def __init__(self, events: list[str], end: Any) -> None:
        self.events = [json.loads(event) for event in events]
        self.end = end
        choices = [choice for event in self.events for choice in event["choices"]]
        self.text = "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)
        self.finish = next((choice["finish_reason"] for choice in choices if choice["finish_reason"]), None)
        self.usage = next((event["usage"] for event in self.events if "usage" in event), {})
        self.entries = [entry for choice in choices if choice.get("logprobs") for entry in choice["logprobs"]["content"]]
        self.calls = [call for choice in choices for call in choice.get("delta", {}).get("tool_calls", [])]


def question(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def prompt_of(entry: dict[str, Any]) -> list[int]:
    ids: list[int] = entry["prompt_ids"]
    return ids


def answer_to(prompt: str) -> str:
    return next(str(entry["answer"]) for entry in EXPECTED["chat"] if entry["prompt"] == prompt)
