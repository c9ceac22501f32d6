"""The benchmark of TCP links on a small scale: a real supervisor, and a few workers with keys that beat and tell of their devices."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    found = importlib.import_module("benchmarks.tcp_links")
    monkeypatch.setattr(found, "PACE", 0.3)  # in so short a time, on a busy machine
    return found


def test_workers_join_beat_and_are_counted(links: Any) -> None:
    quiet, telling = links.measure(20, 1.5, settle=0.2)
    assert 0 < quiet.share < 1
    assert quiet.said > 0
    assert telling.got > quiet.got, "words on devices come besides the beats"


def test_a_supervisor_that_takes_nothing_is_not_measured(links: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = links.KeyPair.new()
    members = links._members
    monkeypatch.setattr(links, "_members", lambda home, count: ([stranger] * count, members(home, count)[1]))
    with pytest.raises(links.NotReady, match="the key of this process is not known there"):
        links.measure(1, 0.1, settle=0.0)
