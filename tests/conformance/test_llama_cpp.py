"""The parity suite on the llama.cpp engine, with xi-tiny."""

from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace

from xi_core.serving.request import COMPLETIONS
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.parity_kit import COMPLETION_PROMPTS, ParityKit
from xi_core.testing.proofs import ClaimsKit

pytest.importorskip("xllamacpp", reason="the llama.cpp engine's library is not installed")
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/xi-tiny-f16.gguf"
ENGINE = "xi_plugins.engines.llama_cpp.engine:LlamaCppEngine"


class TestLlamaCpp(ParityKit):
    """With grammars."""

    plugin = "xi_plugins.engines.llama_cpp.plugin"
    plan = plan_for(ENGINE, str(XI_TINY), "ggufv2", grammars=True)
    chunked: ClassVar = {"batch_size": 32}
    logprob_tolerance = 0.1
    logprobs_by_character = True


class TestLlamaCppCompletions(ParityKit):
    """Without grammars, which are refused then."""

    plugin = TestLlamaCpp.plugin
    plan = plan_for(ENGINE, str(XI_TINY), "ggufv2")
    route = COMPLETIONS
    prompts = COMPLETION_PROMPTS
    chunked = TestLlamaCpp.chunked
    logprob_tolerance = TestLlamaCpp.logprob_tolerance
    logprobs_by_character = True
    runs = 10


def test_thinking_is_switched_by_launch_and_by_request() -> None:
    """llama.cpp reads the variable itself, beside giving it to the template."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %} Think, think, think.{% endif %}"
    sizes = {}
    for launch in (True, False):
        with Harness(replace(TestLlamaCpp.plan, chat_template=template, enable_thinking=launch)) as harness:
            for request in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                answer = harness.chat("Hi", max_tokens=1, temperature=0, chat_template_kwargs=request)
                sizes[launch, request.get("enable_thinking")] = answer.usage["prompt_tokens"]
    assert sizes[True, None] == sizes[True, True] == sizes[False, True]
    assert sizes[False, None] == sizes[False, False] == sizes[True, False]
    assert sizes[False, None] < sizes[True, None]


class TestLlamaCppClaims(ClaimsKit):
    plugin = TestLlamaCpp.plugin
    engine = ENGINE
