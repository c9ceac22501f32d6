"""Sampling values of a model's files: those that no request might have are left out, and told."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from xi_core.models.sampling import recommended


def test_what_a_request_might_have_is_taken() -> None:
    values = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "repetition_penalty": 1.05, "max_length": 99, "top_a": 1}
    assert recommended(values) == {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05}
    assert recommended({"temperature": 1, "top_k": 20.0, "top_p": None}) == {"temperature": 1.0, "top_k": 20}
    assert recommended({"top_k": "20", "temperature": "0.6"}) == {"top_k": 20, "temperature": 0.6}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", 2.5),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", "much"),
        ("top_k", 20.5),
        ("top_k", [1]),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
    ],
)
def test_what_none_might_have_is_left_out_and_told(caplog: pytest.LogCaptureFixture, name: str, value: Any) -> None:
    with caplog.at_level(logging.WARNING):
        assert recommended({name: value, "min_p" if name != "min_p" else "top_p": 0.5}) == {"min_p" if name != "min_p" else "top_p": 0.5}
    assert f"the model's files recommend {name} {value!r}, which is left out" in caplog.text
