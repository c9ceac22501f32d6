"""The benchmark of what xi takes before it does anything: the cluster's part, with a real head and a real worker."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # dev environment has no stubs
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def footprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = importlib.import_module("benchmarks.footprint")
    monkeypatch.setattr(found, "IDLE", 0.1)
    return found


def of_home(folder: Path) -> list[psutil.Process]:
    """Live processes whose XI_HOME is in this folder."""
    return [one for one in psutil.process_iter(["environ"]) if (one.info["environ"] or {}).get("XI_HOME", "").startswith(f"{folder}/")]


def test_a_head_and_a_worker_with_its_keeper_are_measured(footprint: Any, tmp_path: Path) -> None:
    found = footprint.cluster()
    assert (found.head_processes, found.worker_processes) == (3, 2)
    assert 0.1 < found.head_cpu < 60
    assert 0.05 < found.worker_cpu < 60
    assert 5 < found.worker_memory < 700
    rows = footprint.cluster_rows([found])
    assert [(row.unit, row.target) for row in rows] == [("CPU-s", "≤ 2.5"), ("CPU-s", "≤ 2.5"), ("MB", "≤ 70")]
    assert [row.value for row in rows] == [found.head_cpu, found.worker_cpu, found.worker_memory]
    assert of_home(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_does_not_join_is_not_measured_and_nothing_is_left(
    footprint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "NAME", "../x")
    with pytest.raises(footprint.NotReady, match=r"'\.\./x' is no name"):
        footprint.cluster()
    assert of_home(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_worker_whose_keeper_is_not_below_it_is_not_measured(footprint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_keeper", lambda endpoint: 1)
    with pytest.raises(footprint.NotReady, match="has no keeper below it"):
        footprint.cluster()
    assert of_home(tmp_path) == []


def test_waiting_for_a_word_of_a_process(footprint: Any) -> None:
    child = importlib.import_module("benchmarks.processes").Child
    code = "import sys; print('first', file=sys.stderr, flush=True); sys.stdin.read(); print('last', file=sys.stderr)"
    with child([sys.executable, "-c", code]) as talking:
        talking.hear("first")
        with pytest.raises(footprint.NotReady, match=r"did not write 'second' within 0\.1 s\nfirst"):
            talking.hear("second", timeout=0.1)
    with child([sys.executable, "-c", "import sys; sys.exit('the reason')"]) as ended:
        ended.hear("the reason")
        with pytest.raises(footprint.NotReady, match="ended and did not write 'anything'\nthe reason"):
            ended.hear("anything")
