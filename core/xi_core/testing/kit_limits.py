"""The part of `EngineKit` about what is refused, and about leaving."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import pytest

from xi_core.api.openai import ChatRequest, CompletionRequest
from xi_core.serving.request import CHAT
from xi_core.testing.harness import Harness
from xi_core.testing.kit_base import KitBase
from xi_core.wire.frames import Data, Open

SAMPLES: dict[str, Any] = {
    "n": 2, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    "repetition_penalty": 1.5, "logit_bias": {"65": 1}, "seed": 1, "stop": "x", "ignore_eos": True, "max_tokens": 4,
    "logprobs": 1, "return_token_ids": True, "echo": True, "chat_template_kwargs": {"a": 1},
    "stream_options": {"include_usage": True}, "response_format": {"type": "json_object"}, "structured_outputs": {"choice": ["a"]},
    "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto", "parallel_tool_calls": False,
}  # fmt: skip
"""A good value of each field of chat and completions."""


class LimitChecks(KitBase):
    """Refusals, aborts, and the end."""

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

    def test_what_is_not_claimed_is_refused(self, harness: Harness) -> None:
        known = msgspec.structs.fields(ChatRequest if self.route == CHAT else CompletionRequest)
        for name in {info.name for info in known} & set(SAMPLES):
            if self.claims(harness, name):
                continue
            value = True if name == "logprobs" and self.route == CHAT else SAMPLES[name]
            answer = self.ask(harness, self.prompts[0], **{name: value}, **({"stream": True} if name == "stream_options" else {}))
            assert (answer.status, (answer.error or {}).get("param")) == (400, name)

    def test_too_long_a_prompt(self, harness: Harness) -> None:
        answer = self.ask(harness, "long " * (harness.model.context_length + 10))
        assert answer.status == 400
        assert answer.error is not None
        assert answer.error["code"] == "context_length_exceeded"

    def test_malformed_body(self, harness: Harness) -> None:
        assert harness.submit(self.route, b'{"model": ').answer().status == 400

    def test_abort_frees_the_slot(self, harness: Harness) -> None:
        self.supports(harness, "ignore_eos")
        for _ in range(3 * harness.model.slots if harness.model.slots < 8 else 12):
            call = self.start(harness, self.prompts[-1], stream=True, ignore_eos=True, max_tokens=400, temperature=0)
            assert isinstance(call.first(), Open)
            assert isinstance(call.first(), Data)
            call.abort()
        harness.wait_idle(5.0)
        assert harness.engine.stats().running == 0
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
