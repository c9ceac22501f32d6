"""The engine `llama.cpp` on the real library and the shipped xi-tiny: what is particular to it. The conformance kit covers the rest."""

from __future__ import annotations

import json
import math
import os
import socket
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.engine.base import ApiRequest, ApiSink, LoadedModel
from xi_core.errors import ArtifactError, EngineError, UnknownOption
from xi_core.wire.manifest import Manifest
from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan
from xi_plugins.engines.llama_cpp.plugin import MANIFEST, WITHOUT_GRAMMARS
from xi_plugins.engines.llama_cpp.translate import CHAT, COMPLETIONS

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.engine("llama.cpp"), pytest.mark.timeout(60)]

import xi_plugins.families  # noqa: E402
from xi_plugins.engines.llama_cpp import engine as engine_module  # noqa: E402
from xi_plugins.engines.llama_cpp.engine import LlamaCppEngine  # noqa: E402

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


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    loaded = Loaded()
    yield loaded
    loaded.engine.close(5.0)


# ---- loading --------------------------------------------------------------------------------------


def test_loaded_model(loaded: Loaded) -> None:
    endpoints = {route: fields | {"structured_outputs": WITHOUT_GRAMMARS} for route, fields in MANIFEST.endpoints.items()}
    assert loaded.model == LoadedModel(context_length=1024, slots=32, manifest=Manifest(endpoints=endpoints))
    assert loaded.stages == ["reading the model's header", "reading weights", "loading weights"]
    loaded.engine.check()


def test_listener_is_closed_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    real = engine_module.Listener.properties

    def watched(self: Any, address: str) -> dict[str, Any]:
        path = address.removeprefix("unix://")
        seen.append((path, stat.S_IMODE(os.stat(Path(path).parent).st_mode)))
        return real(self, address)

    monkeypatch.setattr(engine_module.Listener, "properties", watched)
    before = _listening_ports()
    loaded = Loaded(endpoint=f"ipc://{tmp_path}/m-0.sock", slots=1)
    try:
        path, mode = seen[0]
        assert Path(path).is_relative_to(tmp_path)
        assert mode == 0o700
        assert list(tmp_path.iterdir()) == [], "socket and folder are gone"
        with socket.socket(socket.AF_UNIX) as door, pytest.raises(OSError):
            door.connect(path)
        assert _listening_ports() == before
        assert loaded.ask("What is", max_tokens=2).end == "done"
    finally:
        loaded.engine.close(5.0)


def _listening_ports() -> set[str]:
    """This process's listening TCP sockets, by inode."""
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


@pytest.mark.parametrize("kv_unified", [False, True])
def test_every_slot_has_the_promised_context(kv_unified: bool) -> None:
    loaded = Loaded(context_length=100, slots=3, kv_unified=kv_unified, batch_size=32)
    try:
        assert (loaded.model.context_length, loaded.model.slots) == (100, 3)
        ids = [loaded.start([5] * 40, max_tokens=1000, ignore_eos=True) for _ in range(3)]
        loaded.sink.wait(*ids)
        for answer in map(loaded.answer, ids):
            assert (answer.end, answer.finish, answer.usage["completion_tokens"]) == ("done", "length", 60)
        too_long = loaded.ask([5] * 101, max_tokens=1)
        assert too_long.end[0] == 400
        assert too_long.end[2:] == ("prompt", "context_length_exceeded")
        assert "101 tokens" in too_long.end[1]
    finally:
        loaded.engine.close(5.0)


def test_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(UnknownOption, match="context_length 4096 is more than this model's 1024"):
        Loaded(context_length=4096)


def test_options_that_contradict() -> None:
    with pytest.raises(EngineError, match="quantized V cache requires"):
        Loaded(flash_attention="off", cache_type_v="q8_0")


@pytest.mark.parametrize(
    "options",
    [
        {"flash_attention": "on", "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"flash_attention": False},
        {"threads": 2, "threads_batch": 1, "batch_size": 64, "ubatch_size": 32},
        {"mmap": False},
        {"n_gpu_layers": 99, "split_mode": "none", "kv_offload": False},
        {"swa_full": True, "warmup": False, "check_tensors": True, "cache_prompt": False},
    ],
    ids=str,
)
def test_options_work(options: dict[str, Any]) -> None:
    loaded = Loaded(slots=2, **options)
    try:
        assert loaded.chat("What is 2 + 3?", max_tokens=32).text == _answer("What is 2 + 3?")
    finally:
        loaded.engine.close(5.0)


def test_rope_options_change_the_model(loaded: Loaded) -> None:
    def first(model: Loaded) -> float:
        entry = model.chat("What is 2 + 3?", max_tokens=1, logprobs=True, top_logprobs=1).entries[0]
        return float(entry["logprob"])

    plain = first(loaded)
    for options in ({"rope_freq_scale": 0.25}, {"rope_freq_base": 10.0}):
        other = Loaded(slots=1, **options)
        try:
            assert abs(first(other) - plain) > 1e-4
        finally:
            other.engine.close(5.0)


def test_damaged_weights(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(MODEL.read_bytes()[:1_000_000])
    with pytest.raises(ArtifactError, match=r"can't load .*cut.gguf: tensor '.*' data is not within the file bounds"):
        Loaded(path=cut)


def test_without_chat_template_no_chat(tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(MODEL.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.what_template", 1))
    loaded = Loaded(path=bare, slots=1)
    try:
        assert list(loaded.model.manifest.endpoints) == [COMPLETIONS]
    finally:
        loaded.engine.close(5.0)
    loaded = Loaded(path=bare, slots=1, chat_template="{% for message in messages %}{{ message.content }}{% endfor %}")
    try:
        assert CHAT in loaded.model.manifest.endpoints
        assert loaded.chat("What is", max_tokens=2).usage["prompt_tokens"] == loaded.ask("What is", max_tokens=2).usage["prompt_tokens"]
    finally:
        loaded.engine.close(5.0)


# ---- answers --------------------------------------------------------------------------------------


def _answer(prompt: str) -> str:
    return next(str(entry["answer"]) for entry in EXPECTED["chat"] if entry["prompt"] == prompt)


def test_expected_answers_alone(loaded: Loaded) -> None:
    for entry in EXPECTED["chat"]:
        answer = loaded.chat(entry["prompt"], max_tokens=200)
        assert answer.text == entry["answer"]
        assert answer.finish == "stop"
        assert answer.usage["prompt_tokens"] == len(entry["prompt_ids"])
        assert answer.usage["completion_tokens"] == len(entry["answer_ids"]), "the end token counts"


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_expected_answers_at_once(loaded: Loaded, route: str) -> None:
    entries = EXPECTED["chat"]
    for first in range(0, len(entries), 32):
        batch = entries[first : first + 32]
        ids = [
            loaded.start(messages=question(entry["prompt"]), max_tokens=200)
            if route == CHAT
            else loaded.start(prompt_of(entry), max_tokens=200)
            for entry in batch
        ]
        loaded.sink.wait(*ids)
        assert [loaded.answer(id).text for id in ids] == [entry["answer"] for entry in batch]


def test_expected_tool_calls(loaded: Loaded) -> None:
    for entry in EXPECTED["tools"]:
        tools = [EXPECTED["tool_definitions"][name] for name in entry["tools"]]
        answer = loaded.chat(entry["prompt"], max_tokens=200, tools=tools)
        assert answer.finish == "tool_calls"
        assert answer.calls[0]["function"]["name"] == entry["calls"][0]["name"]
        assert json.loads("".join(call["function"]["arguments"] for call in answer.calls)) == entry["calls"][0]["arguments"]
        assert answer.usage["completion_tokens"] == len(entry["answer_ids"])


def test_a_named_tool_is_called(loaded: Loaded) -> None:
    tools = list(EXPECTED["tool_definitions"].values())
    choice = {"type": "function", "function": {"name": "get_time"}}
    answer = loaded.chat("What is the weather in Paris?", max_tokens=200, tools=tools, tool_choice=choice)
    assert answer.calls[0]["function"]["name"] == "get_time"


def test_developer_is_the_system(loaded: Loaded) -> None:
    usages = [
        loaded.ask(messages=[{"role": role, "content": "Be brief."}, *question("What is 2 + 3?")], max_tokens=4).usage["prompt_tokens"]
        for role in ("system", "developer")
    ]
    assert usages[0] == usages[1]


def test_an_assistants_last_message_is_not_continued(loaded: Loaded) -> None:
    answer = loaded.ask(messages=[*question("What is 2 + 3?"), {"role": "assistant", "content": "2 +"}], max_tokens=4)
    assert answer.end == "done"
    assert answer.usage["prompt_tokens"] > loaded.chat("What is 2 + 3?", max_tokens=4).usage["prompt_tokens"] + 2


def test_no_progress_events_leak(loaded: Loaded) -> None:
    answer = loaded.ask([5] * 900, max_tokens=2)
    assert not [event for event in answer.events if "prompt_progress" in event]


def test_stop_strings_count_the_token_that_ends(loaded: Loaded) -> None:
    whole = loaded.chat("What is 2 + 3?", max_tokens=32)
    text = whole.text
    stop = text[-3:-1]
    for fields in ({}, {"logprobs": True, "top_logprobs": 0}):
        answer = loaded.chat("What is 2 + 3?", max_tokens=32, stop=["never", stop], **fields)
        assert (answer.text, answer.finish) == (text[: text.index(stop)], "stop")
        assert answer.usage["prompt_tokens"] == whole.usage["prompt_tokens"]
        assert 0 < answer.usage["completion_tokens"] < whole.usage["completion_tokens"]
        if fields:
            assert "".join(entry["token"] for entry in answer.entries).startswith(answer.text), "an entry for every token that shows"


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_logprobs_are_of_the_whole_distribution(loaded: Loaded, temperature: float) -> None:
    vocabulary = 1100
    ids = EXPECTED["chat"][0]["prompt_ids"]
    answer = loaded.ask(ids, max_tokens=6, logprobs=vocabulary, temperature=temperature, seed=4, top_k=5)
    assert answer.entries
    for entry in answer.entries:
        top = {one["id"]: one["logprob"] for one in entry["top_logprobs"]}
        assert math.isclose(sum(map(math.exp, top.values())), 1.0, abs_tol=1e-3), "not cut by top_k"
        assert math.isclose(top[entry["id"]], entry["logprob"], abs_tol=1e-6)


def test_the_end_token_has_no_entry(loaded: Loaded) -> None:
    entry = EXPECTED["chat"][0]
    for answer in (
        loaded.ask(prompt_of(entry), max_tokens=200, logprobs=0),
        loaded.chat(entry["prompt"], max_tokens=200, logprobs=True, top_logprobs=0),
    ):
        assert answer.finish == "stop"
        assert len(answer.entries) == answer.usage["completion_tokens"] - 1
        assert "".join(one["token"] for one in answer.entries) == answer.text


def test_seeds_repeat_alone(loaded: Loaded) -> None:
    """Beside others they may not, which the manifest says; but each of those answers is whole."""
    fields: dict[str, Any] = {"messages": question("Tell me a story."), "max_tokens": 24, "temperature": 1.8, "ignore_eos": True}
    alone = [loaded.ask(**fields, seed=seed).text for seed in range(4)]
    assert len(set(alone)) > 1
    assert [loaded.ask(**fields, seed=seed).text for seed in range(4)] == alone
    ids = [loaded.start(**fields, seed=number % 4) for number in range(32)]
    loaded.sink.wait(*ids)
    assert {loaded.answer(id).usage["completion_tokens"] for id in ids} == {24}


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_filters_leave_the_likeliest(loaded: Loaded, fields: dict[str, Any]) -> None:
    assert loaded.chat("What is 2 + 3?", max_tokens=32, temperature=2.0, **fields).text == _answer("What is 2 + 3?")


def test_penalties_and_bias_change_the_answer(loaded: Loaded) -> None:
    expected = _answer("What is 2 + 3?")
    first = loaded.chat("What is 2 + 3?", max_tokens=1, logprobs=True, top_logprobs=1).entries[0]["id"]
    assert loaded.chat("What is 2 + 3?", max_tokens=32, repetition_penalty=10.0).text != expected
    banned = loaded.chat("What is 2 + 3?", max_tokens=1, logprobs=True, top_logprobs=1, logit_bias={str(first): -100.0})
    assert banned.entries[0]["id"] != first
    assert banned.entries[0]["top_logprobs"][0]["id"] == first, "log-probabilities are the model's own"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [5, 10**8]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "logit_bias": {"99999999": 1.0}}, "logit_bias"),
        ({"messages": question("x"), "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "foo"}}}]}, "tools"),
        (
            {
                "messages": question("x"),
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "array", "items": {}, "minItems": 100_000}}}
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"messages": question("long " * 2000)}, "messages"),
        (
            {
                "messages": [
                    *question("x"),
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "not JSON"}}],
                    },
                ]
            },
            "messages",
        ),
    ],
)
def test_bad_requests_name_the_field(loaded: Loaded, fields: dict[str, Any], param: str) -> None:
    answer = loaded.ask(max_tokens=4, **fields)
    assert answer.events == []
    assert (answer.end[0], answer.end[2]) == (400, param)
    assert loaded.chat("What is 2 + 3?", max_tokens=32).text == _answer("What is 2 + 3?"), "others go on"


# ---- leaving --------------------------------------------------------------------------------------


def test_abort_while_it_answers(loaded: Loaded) -> None:
    id = loaded.start("Once", max_tokens=1000, ignore_eos=True)
    loaded.sink.wait_events(id, 3)
    loaded.engine.abort(id)
    began = time.monotonic()
    loaded.sink.wait(id)
    assert time.monotonic() - began < 1.0
    assert loaded.sink.ends[id] == "done"
    assert loaded.engine.stats().running == 0


def test_abort_at_once(loaded: Loaded) -> None:
    ids = [loaded.start([5] * 1000, max_tokens=20) for _ in range(32)]
    for id in ids:
        loaded.engine.abort(id)
    loaded.sink.wait(*ids)
    assert {loaded.sink.ends[id] for id in ids} == {"done"}
    loaded.engine.abort(12345678)


def test_steps_move_and_aborts_take_effect_within_a_prompt() -> None:
    loaded = Loaded(slots=1, batch_size=32, ubatch_size=32)
    try:
        before = loaded.engine.stats().steps
        answer = loaded.ask([5] * 1000, max_tokens=1)
        assert answer.end == "done"
        assert loaded.engine.stats().steps - before >= 1000 // 32, "a step for each batch of the prompt"
        whole = loaded.engine.stats()
        id = loaded.start([6] * 1000, max_tokens=1)
        deadline = time.monotonic() + WAIT
        while loaded.engine.stats().steps < whole.steps + 3 and time.monotonic() < deadline:
            time.sleep(0)
        loaded.engine.abort(id)
        loaded.sink.wait(id)
        assert loaded.sink.ends[id] == "done"
    finally:
        loaded.engine.close(5.0)


def test_close_ends_requests_and_threads() -> None:
    before = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").is_dir() else None
    loaded = Loaded(slots=4)
    ids = [loaded.start("Once", max_tokens=1000, ignore_eos=True) for _ in range(4)]
    loaded.sink.wait_events(ids[0], 1)
    loaded.engine.close(10.0)
    loaded.sink.wait(*ids)
    with pytest.raises(EngineError, match="closed"):
        loaded.engine.check()
    late = loaded.start("Once", max_tokens=1)
    assert loaded.sink.ends[late][0] == 503
    if before is not None:
        assert len(os.listdir("/proc/self/task")) <= before, "llama.cpp's own threads are gone"
