"""Calls on vLLM: whether a launch can force them, and what its server is sent."""

import json
from pathlib import Path
from typing import Any

import pytest

from xi_core.engine.base import ApiRequest
from xi_core.engine.child_address import Address
from xi_core.serving.request import CHAT
from xi_core.testing.harness import plan_for
from xi_core.testing.manifest_bounds import widened
from xi_core.wire.manifest import Ability
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.vllm.calls import call_form
from xi_plugins.engines.vllm.engine import VllmEngine
from xi_plugins.engines.vllm.plugin import CALL_FORMS, xi_engines

INFO = next(iter(xi_engines()))
HERMES: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
TOOLS = [{"type": "function", "function": {"name": "look", "strict": True, "parameters": {"type": "object"}}}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 7, "content": "<tool_call>", "special": False}]}))
    return tmp_path


def plan(path: Path, **options: Any) -> LaunchPlan:
    return plan_for(INFO.engine, str(path), "pytorch", "uid", **INFO.check_options(options))


def cell(path: Path, **options: Any) -> Ability:
    made = VllmEngine().loaded(plan(path, **options), {"max_model_len": 9}).manifest
    assert widened(made, INFO.manifest) == []
    return made.endpoints[CHAT]["tool_choice"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tool_call_parser": "mistral"}, "hermes"),
        ({"structured-outputs-config": {"backend": "xgrammar"}}, "guidance"),
        ({"structured_outputs_config": '{"backend": "xgrammar"}'}, "guidance"),
        ({"structured_outputs_config": {"disable_any_whitespace": True}}, "guidance"),
        ({"structured-outputs-config.backend": "auto"}, "guidance"),
        ({"structured_outputs_config": "{"}, "guidance"),
    ],
)
def test_calls_that_vllm_can_not_be_made_to_write(model: Path, options: dict[str, Any], reason: str) -> None:
    found = cell(model, **{**HERMES, **options})
    assert found.values == ("none", "auto")
    assert reason in found.reason


@pytest.mark.parametrize(
    "options", [{}, {"structured_outputs_config": {"backend": "guidance"}}, {"structured_outputs_config.backend": "guidance"}]
)
def test_calls_that_it_can(model: Path, options: dict[str, Any]) -> None:
    assert not cell(model, **HERMES, **options).values
    assert call_form(plan(model, **HERMES, **options)) == CALL_FORMS["hermes"]


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "look"}}])
def test_what_the_server_is_sent(model: Path, tmp_path: Path, choice: Any) -> None:
    pytest.importorskip("llguidance")
    engine = VllmEngine()
    engine.command(plan(model, **HERMES), Address(key="k", folder=str(tmp_path), port=1))
    asked = {"messages": [], "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    sent = engine.body(ApiRequest(id=1, route=CHAT, body=asked))
    grammar = sent.pop("structured_outputs")["grammar"]
    assert "<[7]>" in grammar
    assert "look" in grammar
    function = {"name": "look", "parameters": {"type": "object"}}
    assert sent == {"messages": [], "tools": [{"type": "function", "function": function}], "tool_choice": "auto"}


@pytest.mark.parametrize("name", ["speculative_config", "speculative-config", "speculative-config.method"])
def test_with_drafts_it_takes_fewer_fields(model: Path, name: str) -> None:
    """A recommended min_p would have every request refused otherwise."""
    loaded = VllmEngine().loaded(plan(model, **HERMES, **{name: "ngram"}), {"max_model_len": 9})
    for fields in loaded.manifest.endpoints.values():
        assert (fields["min_p"].state, fields["logit_bias"].state, fields["top_p"].state) == ("no", "no", "yes")
    assert "--speculative-config" in loaded.manifest.endpoints[CHAT]["min_p"].reason
    assert VllmEngine().loaded(plan(model), {"max_model_len": 9}).manifest.endpoints[CHAT]["min_p"].state == "yes"
