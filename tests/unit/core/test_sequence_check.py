import pytest

from xi_core.engine.base import SamplingParams
from xi_core.engine.sequence_check import check_ids, check_sequence
from xi_core.errors import ContextLengthExceeded, InvalidRequest

GREEDY = SamplingParams(max_tokens=1, temperature=0)


@pytest.mark.parametrize(
    ("prompt", "biases", "param", "words"),
    [
        ([], {}, "prompt", "prompt is empty"),
        ([5, 96, 97], {}, "prompt", "prompt: token id 96 is outside the vocabulary of 96"),
        ([5, -1], {}, "prompt", "token id -1"),
        ([5], {96: 1.0}, "logit_bias", "logit_bias: token id 96"),
        ([5], {-1: 1.0}, "logit_bias", "token id -1"),
    ],
)
def test_what_can_not_join_is_named(prompt: list[int], biases: dict[int, float], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        check_sequence(prompt, SamplingParams(max_tokens=1, logit_bias=biases), context=10, vocabulary=96)
    assert caught.value.param == param


def test_an_answer_needs_room() -> None:
    check_sequence([5] * 9, GREEDY, context=10, vocabulary=96)
    with pytest.raises(ContextLengthExceeded, match="has 10 tokens; the context holds 10, answer included") as caught:
        check_sequence([5] * 10, GREEDY, context=10, vocabulary=96)
    assert caught.value.param == "prompt"


def test_the_ends_of_the_vocabulary_are_in_it() -> None:
    check_ids("prompt", [0, 95], 96)
    check_ids("prompt", [], 96)
