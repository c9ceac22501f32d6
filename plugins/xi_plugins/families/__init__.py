"""Built-in model families: one JSON file each, in the form of `xi_core.models.family_file`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelFamily
from xi_core.models.family_file import expanded, read_family

FOLDER = Path(__file__).parent


@hookimpl
def xi_model_families() -> Iterable[ModelFamily]:
    """The families of this folder. `xi-tiny`, a model of a few hundred kilobytes, is shipped with xi itself."""
    return [expanded(read_family(path.read_bytes(), f"the built-in family {path.name}")) for path in sorted(FOLDER.glob("*.json"))]
