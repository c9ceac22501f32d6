"""How many files the benchmark of TCP links may have open: raised, and where that can't be, said so before anything is measured."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from xi_core.errors import ConfigError

pytest.importorskip("resource", reason="Windows has no such limit")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.tcp_links")


def test_the_limit_is_raised(links: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [(1024, 4096)]
    monkeypatch.setattr("resource.getrlimit", lambda which: now[-1])
    monkeypatch.setattr("resource.setrlimit", lambda which, limits: now.append(limits))
    links.allow_files(4000)
    assert now[-1] == (4096, 4096)


def test_a_limit_that_cannot_be_raised_is_told(links: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, 1024))
    with pytest.raises(ConfigError, match="must have 4000 files open, and the limit is 1024; raise it"):
        links.allow_files(4000)
