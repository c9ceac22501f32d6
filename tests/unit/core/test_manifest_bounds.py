"""What kits say of a model's manifest that promises more than its engine's."""

from __future__ import annotations

import pytest

from xi_core.testing.manifest_bounds import widened
from xi_core.wire.manifest import YES, Ability, limited, no, of_fields

FEW, MORE = limited("a"), limited("a", "b")


@pytest.mark.parametrize(
    ("cell", "bound"),
    [
        (YES, YES), (FEW, YES), (no("x"), YES), (no("x"), no("y")), (no("x"), FEW), (FEW, FEW), (FEW, MORE),
        (limited(maximum=3), limited(maximum=4)), (limited("a", maximum=3), limited(maximum=3)),
    ],
)  # fmt: skip
def test_what_promises_no_more_keeps_within(cell: Ability, bound: Ability) -> None:
    assert widened(of_fields(chat={"n": cell}), of_fields(chat={"n": bound, "seed": YES}, completions={})) == []


@pytest.mark.parametrize(
    ("cell", "bound"),
    [
        (YES, FEW), (YES, no("x")), (FEW, no("x")), (MORE, FEW), (limited(maximum=3), FEW),
        (limited(maximum=4), limited(maximum=3)), (FEW, limited(maximum=3)),
    ],
)  # fmt: skip
def test_what_promises_more_is_named(cell: Ability, bound: Ability) -> None:
    assert widened(of_fields(chat={"seed": YES, "n": cell}), of_fields(chat={"n": bound, "seed": YES})) == ["/v1/chat/completions n"]


def test_fields_and_routes_that_the_engine_has_not() -> None:
    loaded = of_fields(chat={"n": YES, "seed": no("x")}, rerank={})
    assert widened(loaded, of_fields(chat={})) == ["/v1/chat/completions n", "/v1/rerank"]
