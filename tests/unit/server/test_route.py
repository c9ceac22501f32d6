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
        ({"max_tokens": 10**30}, MOST_TOKENS),
    ],
)  # fmt: skip
def test_a_client_can_not_make_a_replica_look_idle_or_full(fields: dict[str, Any], tokens: int | None) -> None:
    assert route(**fields).most_tokens == tokens


def test_other_fields_are_not_looked_at() -> None:
    assert route(messages="anything", temperature="hot").model == "m"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": ', b'{"max_tokens": "x"}', b"[" * 100_000, b'{"model": "\xff"}'])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_route(body)
