"""`BatchKit`: a token engine's batch, called without a serving layer: what it refuses, who comes and goes, and who fails alone.

class TestMyBatch(BatchKit):
    plan = plan_for("xi_myengine.engine:MyEngine", "/path/to/a/small/model", "pytorch", batch_size=3)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

import pytest

from xi_core.engine.base import LoadedModel, SamplingParams, StepOutput, TokenEngine
from xi_core.engine.grammar import Grammar, Matcher
from xi_core.errors import ContextLengthExceeded, EngineError, InvalidRequest
from xi_core.importing import import_path
from xi_core.serving.request import CHAT
from xi_core.testing.harness import Harness
from xi_core.wire.plan import LaunchPlan

SHAPE = r"[a-c]{2,9}-\d{3}"


class Loaded:
    """An engine with its model, and what is asked of it."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.engine: TokenEngine = import_path(plan.engine.path)()
        self.model: LoadedModel = self.engine.load(plan, lambda stage, share: None)

    def steps(self, count: int) -> list[StepOutput]:
        """What so many steps gave."""
        return [self.engine.step() for _ in range(count)]


def needs_grammars(model: LoadedModel) -> None:
    """Skip the test of an engine whose manifest doesn't claim structured output."""
    cell = model.manifest.endpoints.get(CHAT, {}).get("structured_outputs")
    if cell is None or cell.state == "no":
        pytest.skip("the manifest does not claim structured_outputs")


class BatchKit:
    """Set `plan`, of a model with a chat template and an engine with three slots that reads prompts of 80 tokens in several steps."""

    plan: ClassVar[LaunchPlan]
    tokens: ClassVar[tuple[int, int]] = (300, 301)
    """Ids of text."""

    @pytest.fixture
    def loaded(self) -> Iterator[Loaded]:
        loaded = Loaded(self.plan)
        assert loaded.model.slots == 3
        yield loaded
        loaded.engine.close(10.0)

    def test_a_prompt_that_is_no_prompt(self, loaded: Loaded) -> None:
        size, context = loaded.engine.tokenizer.vocabulary_size, loaded.model.context_length
        for prompt in ([], [-1], [size]):
            with pytest.raises(InvalidRequest) as caught:
                loaded.engine.add(1, prompt, SamplingParams(max_tokens=1))
            assert caught.value.param == "prompt"
        with pytest.raises(ContextLengthExceeded):
            loaded.engine.add(1, [self.tokens[0]] * context, SamplingParams(max_tokens=1))
        with pytest.raises(InvalidRequest) as caught:
            loaded.engine.add(1, [1], SamplingParams(max_tokens=1, logit_bias={size: 1.0}))
        assert caught.value.param == "logit_bias"
        assert loaded.engine.stats().running == 0

    def test_one_token_prompts_and_answers(self, loaded: Loaded) -> None:
        loaded.engine.add(1, [self.tokens[0]], SamplingParams(max_tokens=1, ignore_eos=True))
        loaded.engine.add(2, list(self.tokens), SamplingParams(max_tokens=2, ignore_eos=True))
        found: dict[int, list[str | None]] = {1: [], 2: []}
        for output in loaded.steps(10):
            for out in output.tokens:
                found[out.id].append(out.finish)
        assert found == {1: ["length"], 2: [None, "length"]}
        assert loaded.engine.stats().running == 0

    def test_removed_sequences_are_gone_at_every_stage(self, loaded: Loaded) -> None:
        engine = loaded.engine
        for steps in range(6):
            for id in (1, 2, 3):
                engine.add(id, [self.tokens[0]] * (40 * id), SamplingParams(max_tokens=50, ignore_eos=True))
            assert not engine.has_capacity()
            with pytest.raises(EngineError, match="3 slots"):
                engine.add(4, [self.tokens[0]], SamplingParams(max_tokens=1))
            loaded.steps(steps)
            for id in (2, 99, 1, 3):
                engine.remove(id)
            assert engine.has_capacity()
            assert engine.stats().running == 0
            assert engine.step().tokens == []

    def test_a_grammar_that_fails_ends_only_its_sequence(self, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        needs_grammars(loaded.model)
        grammar = Grammar(kind="regex", text="(ab)+")
        loaded.engine.prepare(grammar)
        loaded.engine.add(1, list(self.tokens), SamplingParams(max_tokens=9, grammar=grammar))
        loaded.engine.add(2, list(self.tokens), SamplingParams(max_tokens=9, ignore_eos=True))
        real, calls = Matcher.allowed, 0

        def failing(matcher: Matcher) -> bytes:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise InvalidRequest("too hard", param="grammar")  # as a matcher does
            return real(matcher)

        monkeypatch.setattr(Matcher, "allowed", failing)
        outputs = loaded.steps(15)
        errors = [error for output in outputs for error in output.errors]
        assert [(error.message, error.status, error.param) for error in errors] == [("too hard", 400, "grammar")]
        made = [token.id for output in outputs for token in output.tokens]
        assert (made.count(1), made.count(2)) == (2, 9)
        assert loaded.engine.stats().running == 0

    def test_rows_with_grammars_and_without_share_batches(self) -> None:
        with Harness(self.plan) as harness:
            needs_grammars(harness.model)
            shaped = [harness.start_chat("Hi", temperature=1.5, structured_outputs={"regex": SHAPE}, max_tokens=40) for _ in range(24)]
            plain = [harness.start_chat("Hi", temperature=0, max_tokens=20) for _ in range(4)]
            answers = [call.answer() for call in shaped]
            assert all(re.fullmatch(SHAPE, answer.text) for answer in answers), [answer.text for answer in answers]
            assert {answer.finishes[0] for answer in answers} == {"stop"}
            assert len({answer.text for answer in answers}) > 1
            assert {call.answer().text for call in plain} == {harness.chat("Hi", temperature=0, max_tokens=20).text}
