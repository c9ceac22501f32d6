"""Checks of `ParityKit` on tools: xi-tiny calls them as the reference does, as each `tool_choice` says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xi_core.testing.harness import Answer, Harness
from xi_core.testing.parity_base import ParityBase
from xi_core.testing.proofs import proves

END_OF_TURN = "1021"
"""xi-tiny's end token."""


class ToolParity(ParityBase):
    """By the fixture `expected`."""

    def with_tools(self, harness: Harness, expected: dict[str, Any], case: dict[str, Any], **fields: Any) -> Answer:
        """Ask a question beside the tools of its case."""
        messages = case.get("messages") or [{"role": "user", "content": case["prompt"]}]
        tools = [expected["tool_definitions"][name] for name in case["tools"]]
        return harness.chat(messages, tools=tools, temperature=0, **fields)

    @proves("tools")
    @pytest.mark.parametrize("stream", [False, True])
    def test_tool_round_trip(self, harness: Harness, expected: dict[str, Any], stream: bool) -> None:
        self.supports(harness, "tools")
        for case in expected["tools"][::3]:
            answer = self.with_tools(harness, expected, case, stream=stream)
            assert (called(answer), answer.finishes) == (case["calls"], ["tool_calls"])
        for case in expected["follow_ups"][::3]:
            answer = self.with_tools(harness, expected, case, stream=stream)
            assert (answer.text, answer.finishes) == (case["answer"], ["stop"])

    @proves("tool_choice")
    @pytest.mark.parametrize("choice", ["none", "auto", "required", "named"])
    def test_tool_choice(self, harness: Harness, expected: dict[str, Any], choice: str) -> None:
        self.supports(harness, "tools", "tool_choice")
        values = harness.model.manifest.endpoints[self.route]["tool_choice"].values
        for case in expected["tools"][::8]:
            name = case["calls"][0]["name"]
            given = {"type": "function", "function": {"name": name}} if choice == "named" else choice
            answer = self.with_tools(harness, expected, case, tool_choice=given, max_tokens=100)
            if values and choice not in values:
                assert (answer.status, (answer.error or {})["param"]) == (400, "tool_choice")
            elif choice == "none":
                assert not called(answer)
            else:
                assert called(answer) == case["calls"]

    @proves("parallel_tool_calls")
    def test_one_call_at_most(self, harness: Harness, expected: dict[str, Any]) -> None:
        self.supports(harness, "parallel_tool_calls", "tool_choice", "logit_bias")
        unending: dict[str, Any] = {"tool_choice": "required", "logit_bias": {END_OF_TURN: -100}, "max_tokens": 100}
        for case in expected["tools"][::16]:
            assert called(self.with_tools(harness, expected, case, **unending, parallel_tool_calls=False)) == case["calls"]
            assert len(self.with_tools(harness, expected, case, **unending).tool_calls) > 1, "it would call again"
            named = {"type": "function", "function": {"name": case["calls"][0]["name"]}}
            assert called(self.with_tools(harness, expected, case, **{**unending, "tool_choice": named})) == case["calls"]


def called(answer: Answer) -> list[dict[str, Any]]:
    """The calls of an answer's first choice, their arguments decoded."""
    assert answer.status == 200, answer.raw
    return [{"name": call["name"], "arguments": json.loads(call["arguments"])} for call in answer.tool_calls]
