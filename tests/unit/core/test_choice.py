"""The first space of an answer by a tokenizer of SentencePiece's kind: text where other text stands before it, and else none."""

from collections.abc import Iterator
from typing import Any

import pytest

from xi_core.engine.base import SamplingParams, Tokenizer
from xi_core.testing.fakes import END, ByteTokenizer, CountingEngine
from xi_core.testing.harness import Harness, plan_for


class SpacedTokenizer(ByteTokenizer):
    """Puts a space before every text."""

    def encode(self, text: str) -> list[int]:
        return super().encode(f" {text}")

    @property
    def starts_with_space(self) -> bool:
        return True


class Writer(CountingEngine):
    """Writes ` time`."""

    @property
    def tokenizer(self) -> Tokenizer:
        return SpacedTokenizer()

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        super().add(id, prompt, sampling)
        self._running[id].text = b" time"


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness(plan_for(f"{__name__}:Writer", "nowhere", "fake")) as harness:
        yield harness


@pytest.mark.parametrize(
    ("prompt", "echoed", "answer"),
    [
        ("Once upon a", "Once upon a", " time"),
        (list(b" Once upon a"), "Once upon a", " time"),
        ([END, *b" Once"], "Once", " time"),
        ([END], "", "time"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_goes_on_behind_its_prompt(harness: Harness, prompt: Any, echoed: str, answer: str, stream: bool) -> None:
    assert harness.complete(prompt, temperature=0, stream=stream).text == answer
    assert harness.complete(prompt, temperature=0, stream=stream, echo=True).text == echoed + answer


def test_the_tokens_of_a_completion_make_its_text(harness: Harness) -> None:
    (choice,) = harness.complete("Once", temperature=0, logprobs=0).body["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == " time"


def test_a_chats_answer_begins_a_text(harness: Harness) -> None:
    assert harness.chat("Hi", temperature=0).text == "time"
