"""The chain of hashes of a prompt's beginning."""

import json
from typing import Any

from xi_core.cluster.routing import COARSE_BLOCKS, FINE_BLOCKS, prefix_bytes
from xi_server.prefix import END, prefix_chain
from xi_server.route import read_route


def chain(messages: Any = None, model: str = "m", **fields: Any) -> tuple[int, ...]:
    if messages is not None:
        fields["messages"] = messages
    return prefix_chain(model, read_route(json.dumps({"temperature": 0.5, "model": model, **fields}).encode()))


def common(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def says(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def test_a_conversation_that_goes_on_begins_alike() -> None:
    first = chain(says("x" * 1000))
    longer = chain(says("x" * 1000, "y" * 1000), max_tokens=3)
    assert len(first) == 4  # blocks of 256 bytes that are whole
    assert len(longer) > 6
    assert common(first, longer) == 4 - (first[3] != longer[3])
    assert common(first, longer) >= 3


def test_one_byte_changes_all_that_follows() -> None:
    one, two = chain(says("x" * 2000)), chain(says("x" * 700 + "y" + "x" * 1299))
    assert len(one) == len(two)
    assert common(one, two) == 2
    assert not set(one[2:]) & set(two[2:])


def test_completions_tools_and_models() -> None:
    prompt = "once upon a time " * 50
    assert chain(prompt=prompt)
    assert chain(prompt=prompt) == chain(prompt=prompt, max_tokens=9)
    assert chain(says(prompt), tools=[{"a": 1}])[0] != chain(says(prompt))[0]
    assert chain(says(prompt), model="adapter")[0] != chain(says(prompt))[0]
    assert chain(prompt=list(range(1000)))


def test_what_has_no_prompt_or_a_short_one_has_no_chain() -> None:
    assert chain(says("Hi")) == chain(input="x" * 1000) == chain(prompt=None) == chain() == ()


def test_long_prompts_have_a_bounded_chain() -> None:
    assert len(chain(prompt="x" * 8192)) == FINE_BLOCKS
    assert len(chain(prompt="x" * (8192 + 2048))) == FINE_BLOCKS + 1
    assert len(chain(prompt="x" * 1_000_000)) == FINE_BLOCKS + COARSE_BLOCKS
    assert prefix_bytes(FINE_BLOCKS + COARSE_BLOCKS) == END == 128 * 1024


def test_nonsense_is_no_error() -> None:
    for value in (17, None, {}, [], "", True, [[[]]]):
        assert chain(value) == (), value
