"""The ports that the system gives out by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from xi_core import local_ports
from xi_core.local_ports import ephemeral


@pytest.mark.parametrize(
    ("told", "expected"), [("32768\t60999\n", range(32768, 61000)), ("", range(0)), ("many", range(0)), (None, range(0))]
)
def test_what_the_system_gives_to_outgoing_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, expected: range
) -> None:
    file = tmp_path / "range"
    monkeypatch.setattr(local_ports, "_EPHEMERAL", file)
    if told is not None:
        file.write_text(told)
    assert ephemeral() == expected
