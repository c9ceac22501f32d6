"""`EngineKit`: the conformance suite of engines. A plugin's tests subclass it and get every check.

    from xi_core.testing.engine_kit import EngineKit

    class TestMyEngine(EngineKit):
        plugin = "xi_myengine.plugin"
        plan = plan_for("xi_myengine.engine:MyEngine", "model.bin", "myformat")

An engine whose model is too small for a check narrows its manifest, which is what the kit goes by; it never skips silently.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.plugins import PluginHub
from xi_core.serving.request import CHAT, COMPLETIONS
from xi_core.testing.harness import Answer, Call, Harness
from xi_core.testing.structured_checks import CASES, Case, check_valid
from xi_core.wire.frames import Data, Open
from xi_core.wire.plan import LaunchPlan

HOST = HostInfo(system="Linux", machine="x86_64", python="3.11", cpus=2, memory=8 * 2**30)


class EngineKit:
    """Set `plugin` and `plan`; `prompts` are requests in greedy form that the model answers in more than four tokens."""

    plugin: ClassVar[str]
    plan: ClassVar[LaunchPlan]
    prompts: ClassVar[tuple[str, ...]] = ("Hello!", "What is the capital of France?", "Tell me a story.")
    route: ClassVar[str] = CHAT

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls) -> Iterator[Harness]:
        with Harness(cls.plan) as harness:
            yield harness

    @pytest.fixture(scope="class")
    @classmethod
    def info(cls) -> EngineInfo:
        hub = PluginHub()
        hub.register(importlib.import_module(cls.plugin), "under-test")
        return next(info for info in hub.engines if info.engine == cls.plan.engine.path)

    # -- the requests that the checks make ---------------------------------------------------------

    def ask(self, harness: Harness, prompt: str, **fields: Any) -> Answer:
        return self.start(harness, prompt, **fields).answer()

    def start(self, harness: Harness, prompt: str, **fields: Any) -> Call:
        if self.route == CHAT:
            return harness.start_chat(prompt, **fields)
        return harness.submit(COMPLETIONS, {"prompt": prompt, "max_tokens": 48, **fields})

    def with_logprobs(self, alternatives: int) -> dict[str, Any]:
        """The fields that ask for log-probabilities, in the route's own form."""
        return {"logprobs": True, "top_logprobs": alternatives} if self.route == CHAT else {"logprobs": alternatives}

    def supports(self, harness: Harness, *fields: str) -> None:
        """Skip a check of fields that the engine's manifest says it can't honour."""
        cells = harness.model.manifest.endpoints.get(self.route, {})
        missing = [name for name in fields if name not in cells or cells[name].state == "no"]
        if missing:
            pytest.skip(f"the manifest does not claim {', '.join(missing)} on {self.route}")

    def structured_case(self, harness: Harness, name: str) -> Case:
        """A case of structured output; skips what the manifest doesn't claim."""
        case = CASES[name]
        self.supports(harness, case.field)
        kinds = harness.model.manifest.endpoints[self.route][case.field].values
        if case.kind and kinds and case.kind not in kinds:
            answer = self.ask(harness, self.prompts[0], **case.fields)
            assert answer.status == 400
            assert answer.error is not None
            assert answer.error["param"] == f"structured_outputs.{case.kind}"
            pytest.skip(f"the manifest does not claim {case.kind} on {self.route}; it is refused")
        return case

    # -- the descriptor ----------------------------------------------------------------------------

    def test_plugin_imports_nothing_heavy(self) -> None:
        module = self.plan.engine.path.partition(":")[0]
        code = f"import sys, {self.plugin}; sys.exit('{module}' in sys.modules or 'torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

    def test_probe_says_yes_where_the_tests_run(self, info: EngineInfo) -> None:
        support = info.probe(HOST)
        assert support.ok, support.reason
        assert support.reason, "probe gives the version"

    def test_loaded_manifest_only_narrows(self, info: EngineInfo, harness: Harness) -> None:
        loaded = harness.model.manifest
        assert loaded.endpoints, "the model serves something"
        assert loaded.narrowed_by(info.manifest) == loaded

    # -- answers -----------------------------------------------------------------------------------

    def test_probe_token(self, harness: Harness) -> None:
        harness.probe()

    def test_greedy_repeats(self, harness: Harness) -> None:
        for prompt in self.prompts:
            first = self.ask(harness, prompt, temperature=0)
            assert first.status == 200, first.raw
            assert first.text
            assert self.ask(harness, prompt, temperature=0).text == first.text

    def test_streamed_equals_whole(self, harness: Harness) -> None:
        self.supports(harness, "stream_options")
        for prompt in self.prompts:
            whole = self.ask(harness, prompt, temperature=0)
            streamed = self.ask(harness, prompt, temperature=0, stream=True, stream_options={"include_usage": True})
            assert streamed.streamed
            assert streamed.raw.endswith(b"data: [DONE]\n\n")
            assert (streamed.text, streamed.finishes, streamed.usage) == (whole.text, whole.finishes, whole.usage)

    def test_many_at_once_equal_alone(self, harness: Harness) -> None:
        alone = {prompt: self.ask(harness, prompt, temperature=0).text for prompt in self.prompts}
        calls = [(prompt, self.start(harness, prompt, temperature=0)) for prompt in self.prompts * 8]
        for prompt, call in calls:
            assert call.answer().text == alone[prompt]

    def test_max_tokens_and_usage(self, harness: Harness) -> None:
        self.supports(harness, "max_tokens")
        answer = self.ask(harness, self.prompts[-1], temperature=0, max_tokens=4)
        assert answer.finishes == ["length"]
        assert answer.usage["completion_tokens"] == 4
        assert answer.usage["prompt_tokens"] > 0
        assert answer.usage["total_tokens"] == answer.usage["prompt_tokens"] + 4

    def test_stop_strings(self, harness: Harness) -> None:
        self.supports(harness, "stop")
        for prompt in self.prompts:
            whole = self.ask(harness, prompt, temperature=0).text
            for start, end in ((len(whole) // 2, len(whole) // 2 + 3), (1, 3), (len(whole) - 2, len(whole) - 1)):
                stop = whole[start:end]
                for stream in (False, True):
                    answer = self.ask(harness, prompt, temperature=0, stop=["\u0001never", stop], stream=stream)
                    assert answer.text == whole[: whole.index(stop)], f"stop {stop!r}, stream {stream}"
                    assert answer.finishes == ["stop"]

    def test_n_choices(self, harness: Harness) -> None:
        self.supports(harness, "n")
        one = self.ask(harness, self.prompts[0], temperature=0)
        for stream in (False, True):
            more = self.ask(
                harness,
                self.prompts[0],
                temperature=0,
                n=3,
                stream=stream,
                **({"stream_options": {"include_usage": True}} if stream else {}),
            )
            assert more.texts == [one.text] * 3
            assert len(more.finishes) == 3
            assert more.usage["completion_tokens"] == 3 * one.usage["completion_tokens"]
            assert more.usage["prompt_tokens"] == one.usage["prompt_tokens"]

    def test_seed_repeats_alone(self, harness: Harness) -> None:
        self.supports(harness, "seed", "temperature")
        fields: dict[str, Any] = {"temperature": 1.5, "max_tokens": 24, "ignore_eos": True}
        texts = [self.ask(harness, self.prompts[0], seed=seed, **fields).text for seed in range(4)]
        assert [self.ask(harness, self.prompts[0], seed=seed, **fields).text for seed in range(4)] == texts
        assert len(set(texts)) > 1, "seeds differ"

    def test_seed_repeats_beside_others(self, harness: Harness) -> None:
        self.supports(harness, "seed", "temperature", "n")
        if harness.model.manifest.endpoints[self.route]["seed"].state == "limited":
            pytest.skip("the manifest claims seeds for requests that run alone")
        fields: dict[str, Any] = {"temperature": 1.5, "max_tokens": 24, "ignore_eos": True, "n": 4}
        first = self.ask(harness, self.prompts[0], seed=7, **fields)
        others = [self.start(harness, self.prompts[1], seed=3, **fields) for _ in range(2)]
        again = self.ask(harness, self.prompts[0], seed=7, **fields)
        for other in others:
            other.answer()
        assert again.texts == first.texts, "the same seed, beside other requests"
        assert len(set(first.texts)) > 1, "choices of one request differ"
        assert self.ask(harness, self.prompts[0], seed=8, **fields).texts != first.texts

    def test_logprobs(self, harness: Harness) -> None:
        self.supports(harness, "logprobs")
        for stream in (False, True):
            answer = self.ask(harness, self.prompts[0], temperature=0, stream=stream, **self.with_logprobs(2))
            assert answer.logprobs, "entries come"
            assert "".join(entry["token"] for entry in answer.logprobs) == answer.text or "\ufffd" in str(answer.logprobs)
            for entry in answer.logprobs:
                assert entry["logprob"] <= 0
                assert len(entry["top_logprobs"]) == 2
                assert entry["top_logprobs"][0]["token"] == entry["token"], "greedy takes the likeliest"
        bare = self.ask(harness, self.prompts[0], temperature=0, **self.with_logprobs(0))
        assert all(entry["top_logprobs"] == [] for entry in bare.logprobs)

    def test_logit_bias(self, harness: Harness) -> None:
        self.supports(harness, "logit_bias", "max_tokens", "logprobs")
        answer = self.ask(harness, self.prompts[0], temperature=0, logit_bias={"65": 100}, max_tokens=3, **self.with_logprobs(1))
        assert len({entry["token"] for entry in answer.logprobs}) == 1, "one token, wherever it was biased to"

    def test_characters_are_never_split(self, harness: Harness) -> None:
        for prompt in self.prompts:
            answer = self.ask(harness, prompt, temperature=0, stream=True)
            assert "\ufffd" not in answer.text
            whole, tokens = answer.text, self.ask(harness, prompt, temperature=0).usage["completion_tokens"]
            for most in range(1, min(tokens, 24)):
                cut = self.ask(harness, prompt, temperature=0, max_tokens=most)
                assert whole.startswith(cut.text), "a character that is cut short does not come out"

    def test_parts_of_a_message_are_lines(self, harness: Harness) -> None:
        if self.route != CHAT:
            return  # prompts have no parts
        first, second = self.prompts[0], self.prompts[-1]
        parts = [{"type": "text", "text": text} for text in (first, second)]
        answer = harness.chat([{"role": "user", "content": parts}], temperature=0)
        plain = self.ask(harness, f"{first}\n{second}", temperature=0)
        assert (answer.text, answer.usage) == (plain.text, plain.usage)

    def test_messages_without_content(self, harness: Harness) -> None:
        if self.route != CHAT:
            return  # prompts have no messages
        question = {"role": "user", "content": self.prompts[0]}
        silent = harness.chat([question, {"role": "assistant", "content": None}, question], temperature=0)
        assert silent.status == 200, silent.raw
        assert harness.chat([{"role": "user"}]).status == 400

    def test_template_variables(self, harness: Harness) -> None:
        self.supports(harness, "chat_template_kwargs")
        template = "{{ words }}{% if loud %} LOUD LOUD LOUD LOUD{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
        with Harness(replace(self.plan, chat_template=template)) as other:
            sizes = [
                self.ask(other, "Hi", max_tokens=1, chat_template_kwargs=variables).usage["prompt_tokens"]
                for variables in (None, {"words": "", "loud": False}, {"words": "a, b, c, d, e, f"}, {"loud": True}, {"other": 1})
            ]
        assert sizes[0] == sizes[1] == sizes[4], "what the template does not read changes nothing"
        assert sizes[0] < min(sizes[2], sizes[3]), "what it reads does"
        for wrong in ({"messages": "x"}, {"words": ["x"]}, {"1": 1}):
            answer = self.ask(harness, "Hi", chat_template_kwargs=wrong)
            assert (answer.status, (answer.error or {}).get("param", "").partition("[")[0]) == (400, "chat_template_kwargs")

    # -- structured output ---------------------------------------------------------------------------

    @pytest.mark.parametrize("name", CASES)
    def test_structured_output(self, harness: Harness, name: str) -> None:
        case = self.structured_case(harness, name)
        fields: dict[str, Any] = {**case.fields, "temperature": 1, "max_tokens": 256}
        calls = [self.start(harness, self.prompts[seed % 3], seed=seed, **fields) for seed in range(10)]
        for answer in [call.answer() for call in calls]:
            assert answer.status == 200, answer.raw
            check_valid(case, answer.text, answer.finishes[0])
        greedy = {**case.fields, "temperature": 0, "max_tokens": 256}
        whole, streamed = self.ask(harness, self.prompts[0], **greedy), self.ask(harness, self.prompts[0], stream=True, **greedy)
        assert (streamed.text, streamed.finishes) == (whole.text, whole.finishes)
        check_valid(case, whole.text, whole.finishes[0])

    def test_structured_output_beside_free_text(self, harness: Harness) -> None:
        case = self.structured_case(harness, "choice")
        alone = self.ask(harness, self.prompts[-1], temperature=0).text
        bound = [self.start(harness, self.prompts[0], temperature=1, n=3, **case.fields) for _ in range(4)]
        free = [self.start(harness, self.prompts[-1], temperature=0) for _ in range(4)]
        assert [call.answer().text for call in free] == [alone] * 4
        assert all(case.valid(text) for call in bound for text in call.answer().texts)

    def test_structured_output_is_cut_by_max_tokens(self, harness: Harness) -> None:
        case = self.structured_case(harness, "json")
        cut = self.ask(harness, self.prompts[0], temperature=1, max_tokens=2, **case.fields)
        assert (cut.finishes, cut.usage["completion_tokens"]) == (["length"], 2)

    def test_structured_output_has_logprobs(self, harness: Harness) -> None:
        case = self.structured_case(harness, "choice")
        self.supports(harness, "logprobs")
        answer = self.ask(harness, self.prompts[0], temperature=0, **case.fields, **self.with_logprobs(2))
        assert case.valid(answer.text)
        assert "".join(entry["token"] for entry in answer.logprobs) == answer.text
        assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in answer.logprobs)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"structured_outputs": {"json": {"type": "object", "not": {}}}}, "structured_outputs.json"),
            ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
            ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex"),
            ({"structured_outputs": {"grammar": "root ::= nope"}}, "structured_outputs.grammar"),
            ({"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}, "ignore_eos"),
            ({"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ],
    )
    def test_bad_structured_output(self, harness: Harness, fields: dict[str, Any], param: str) -> None:
        self.supports(harness, "structured_outputs", "response_format", "ignore_eos")
        answer = self.ask(harness, self.prompts[0], **fields)
        assert answer.status == 400
        assert answer.error is not None
        assert answer.error["param"] == param
        assert self.ask(harness, self.prompts[0], temperature=0, max_tokens=4).status == 200

    # -- refusals ----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"temperature": 9}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"n": 0}, "n"),
            ({"stop": 5}, "stop"),
            ({"frobnicate": 1}, "frobnicate"),
            ({"logit_bias": {"99999999": 1}}, "logit_bias"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
        ],
    )
    def test_bad_fields_are_named(self, harness: Harness, fields: dict[str, Any], param: str) -> None:
        answer = self.ask(harness, self.prompts[0], **fields)
        assert answer.status == 400
        assert answer.error is not None
        assert answer.error["param"] == param

    def test_too_long_a_prompt(self, harness: Harness) -> None:
        answer = self.ask(harness, "long " * (harness.model.context_length + 10))
        assert answer.status == 400
        assert answer.error is not None
        assert answer.error["code"] == "context_length_exceeded"

    def test_malformed_body(self, harness: Harness) -> None:
        assert harness.submit(self.route, b'{"model": ').answer().status == 400

    # -- leaving -----------------------------------------------------------------------------------

    def test_abort_frees_the_slot(self, harness: Harness) -> None:
        self.supports(harness, "ignore_eos")
        for _ in range(3 * harness.model.slots if harness.model.slots < 8 else 12):
            call = self.start(harness, self.prompts[-1], stream=True, ignore_eos=True, max_tokens=400, temperature=0)
            assert isinstance(call.first(), Open)
            assert isinstance(call.first(), Data)
            call.abort()
        harness.wait_idle(5.0)
        assert self.ask(harness, self.prompts[0], temperature=0).status == 200

    def test_abort_before_the_first_token(self, harness: Harness) -> None:
        calls = [self.start(harness, self.prompts[-1], temperature=0) for _ in range(harness.model.slots + 4)]
        for call in calls:
            call.abort()
        harness.wait_idle(10.0)

    def test_steps_move(self, harness: Harness) -> None:
        before = harness.load().steps
        self.ask(harness, self.prompts[0], temperature=0)
        assert harness.load().steps > before

    def test_close_ends_its_threads(self) -> None:
        before = set(threading.enumerate())
        with Harness(self.plan) as harness:
            self.ask(harness, self.prompts[0], temperature=0, max_tokens=2)
        deadline = time.monotonic() + 10
        while (left := [t for t in set(threading.enumerate()) - before if not t.daemon]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left, f"threads that outlive close(): {left}"
