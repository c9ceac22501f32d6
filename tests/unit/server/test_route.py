"""What the gateway reads of a body."""

import json
from typing import Any

import pytest

from xi_core.errors import InvalidRequest
from xi_server.route import MOST_TOKENS, read_route


def route(**fields: Any) -> Any:
    return read_route(json.dumps({"model": "m", **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, None), ({"max_tokens": 7}, 7), ({"max_tokens": 7, "max_completion_tokens": 9}, 9), ({"max_tokens": -(10**9)}, 1),
        ({"max_tokens": 10**30}, MOST_TOKENS), ({"max_tokens": 7, "n": 3}, 21), ({"max_tokens": 7, "n": -3}, 7), ({"max_tokens": 7, "n": 10**30}, 7 * 16),
    ],
)  # fmt: skip
def test_a_client_can_not_make_a_replica_look_idle_or_full(fields: dict[str, Any], tokens: int | None) -> None:
    assert route(**fields).most_tokens == tokens


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("x", 1), ([1, 2, 3], 1), ([], 1), (["x"], 1), ([[1, 2]], 1), (["a", "b"], 2), ([[1], [2, 3], [4]], 3), ([""] * 5, 5), ([[]] * 5, 5),
        (['"[\\', '\\"]', "],[", ",", "[1]"], 5), (["x"] * 10**5, 128), ([[1]] * 10**5, 128), ([["]" + '"' * 10**5]], 2),
    ],
)  # fmt: skip
def test_the_limit_counts_for_each_prompt(prompt: Any, count: int, indent: int | None) -> None:
    body = json.dumps({"model": "m", "max_tokens": 2, "n": 3, "prompt": prompt}, indent=indent).encode()
    assert read_route(body).most_tokens == 2 * min(3 * count, 128)


def test_other_fields_are_not_looked_at() -> None:
    assert route(messages="anything", temperature="hot").model == "m"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": ', b'{"max_tokens": "x"}', b"[" * 100_000, b'{"model": "\xff"}'])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_route(body)
