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


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As templates of thinking models are written, by which llama.cpp knows reasoning."""


def test_reasoning_ends_alike_with_log_probabilities() -> None:
    """Those are answers whose stop strings xi matches itself."""
    fields = {"temperature": 0, "structured_outputs": {"choice": ["<think>\nOne 7 two\n</think>\n\nThree = 7."]}}
    with Harness(replace(TestLlamaCpp.plan, chat_template=THINKING)) as harness:
        for more in ({}, {"stop": [" 7"]}, {"stop": ["= 7"]}, {"stop": ["7 q"]}, {"stop": ["7 q"], "max_tokens": 14}, {"max_tokens": 1}):
            plain, told = (harness.chat("Hi", **fields, **more, **extra) for extra in ({}, {"logprobs": True}))
            assert (told.body["choices"][0]["message"], told.finishes) == (plain.body["choices"][0]["message"], plain.finishes), more
            assert told.usage == plain.usage
            assert told.logprobs


class TestLlamaCppClaims(ClaimsKit):
    plugin = TestLlamaCpp.plugin
    engine = ENGINE
