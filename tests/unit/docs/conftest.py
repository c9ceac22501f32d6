"""The generators of `docs/reference/`, which are scripts and no package."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports one of them by its name."""
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module
