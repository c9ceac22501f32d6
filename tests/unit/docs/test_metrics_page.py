"""The page of metrics. That a real gateway shows nothing else is in `tests/unit/server/test_metrics_reference.py`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def page(generator: Callable[[str], ModuleType]) -> str:
    text: str = generator("metrics_page").metrics()
    return text


def test_names_types_labels_and_meanings(page: str) -> None:
    assert "| `xi_requests_total` | counter | `route`, `model`, `status` | Requests answered, by route, model and HTTP status. |" in page
    assert "| `xi_request_duration_seconds` | histogram | `route`, `model` |" in page
    assert "| `xi_supervisor_connected` | gauge |  |" in page
    for name in ("xi_requests_denied_total", "xi_replica_running", "xi_engine_waiting", "xi_slow_clients_total", "xi_tokens_total"):
        assert page.count(f"\n| `{name}` | ") == 1


def test_every_label_is_explained(page: str) -> None:
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `xi_")]
    labels = {label for row in rows for label in row[2].split(", ") if label}
    assert labels == {"`route`", "`model`", "`status`", "`replica`"}
    for label in labels:
        assert f"\n* {label}: " in page
