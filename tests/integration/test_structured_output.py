"""100 of 100 answers of xi-tiny, which never saw JSON, are what was asked for, at temperature 1, on both engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import xi_plugins
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.structured_checks import CASES, check_valid
from xi_core.wire.plan import LaunchPlan

TINY = Path(xi_plugins.__file__).parent / "families" / "xi_tiny"
PLANS = {
    "transformers": plan_for("xi_plugins.engines.transformers.engine:TransformersEngine", str(TINY / "hf"), "pytorch"),
    "llama.cpp": plan_for("xi_plugins.engines.llama_cpp.engine:LlamaCppEngine", str(TINY / "xi-tiny-f16.gguf"), "ggufv2", grammars=True),
}
LIBRARIES = {"transformers": ("torch", "llguidance"), "llama.cpp": ("xllamacpp",)}
RUNS = 100


@pytest.fixture(scope="module", params=PLANS)
def loaded(request: pytest.FixtureRequest) -> Iterator[Harness]:
    for library in LIBRARIES[request.param]:
        pytest.importorskip(library)
    plan: LaunchPlan = PLANS[request.param]
    with Harness(plan) as harness:
        yield harness


@pytest.mark.parametrize("name", CASES)
def test_every_answer_is_valid(loaded: Harness, name: str) -> None:
    case = CASES[name]
    runs = RUNS if case.ends else 20  # an endless object is written until it is cut
    for first in range(0, runs, 20):
        calls = [loaded.start_chat("Tell me a story.", seed=first + i, temperature=1, max_tokens=256, **case.fields) for i in range(20)]
        for call in calls:
            answer = call.answer()
            assert answer.status == 200, answer.raw
            check_valid(case, answer.text, answer.finishes[0])


def test_a_grammar_that_llama_cpp_can_not_read() -> None:
    pytest.importorskip("xllamacpp")
    with Harness(PLANS["llama.cpp"]) as harness:
        for grammar in ('root ::= "a" nope', 'root ::= "a', 'root ::= root "a" | "b"'):
            answer = harness.chat("Hello!", structured_outputs={"grammar": grammar})
            assert answer.status == 400
            assert answer.error is not None
            assert answer.error["param"] == "structured_outputs.grammar"
        assert harness.chat("Hello!", temperature=0).status == 200
