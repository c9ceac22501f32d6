"""What all chaos tests share. They run by `make test-chaos` only: minutes, and they break real processes and networks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from town import Town


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them read /proc, and most need llama.cpp."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"))
            item.add_marker(pytest.mark.engine("llama.cpp"))


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """A supervisor with its gateway on loopback; no worker yet."""
    with Town(tmp_path) as made:
        yield made


@pytest.fixture
def busy(town: Town) -> Town:
    """Two workers, with a replica each."""
    town.work("w1")
    town.work("w2")
    town.launch(2)
    return town
