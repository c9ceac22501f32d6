"""The table of a benchmark: beside a figure without a target stands no word on whether one is met."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.results")


def test_a_row_without_a_target_is_neither_met_nor_missed(results: Any, capsys: pytest.CaptureFixture[str]) -> None:
    without = results.ratio("shown", "s", "peer", [(8.0, 10.0)])
    met = results.ratio("claimed", "s", "peer", [(5.0, 10.0)], most=0.7)
    missed = results.ratio("missed", "s", "peer", [(8.0, 10.0)], most=0.7)
    assert results.report("toy", [without, met], {}, save=False)
    assert not results.report("toy", [without, missed], {}, save=False)
    lines = {row: line for line in capsys.readouterr().out.splitlines() for row in ("shown", "claimed", "missed") if row in line}
    assert "yes" not in lines["shown"]
    assert "NO" not in lines["shown"]
    assert "0.8" in lines["shown"]
    assert "yes" in lines["claimed"]
    assert "NO" in lines["missed"]
