"""The `builtin` source: model files that are shipped with xi, beside their families."""

from __future__ import annotations

from pathlib import Path

from xi_core.errors import ArtifactError
from xi_core.models.family import SourceRef
from xi_core.models.source import Progress, Source

FAMILIES = Path(__file__).parent.parent / "families"


class BuiltinSource(Source):
    """The id is a path relative to the folder of the built-in families. Nothing outside that folder can be named."""

    def __init__(self, root: Path = FAMILIES) -> None:
        self._root = root.resolve()

    def fetch(self, ref: SourceRef, home: Path, progress: Progress) -> Path:
        path = (self._root / ref.id).resolve()
        if path == self._root or not path.is_relative_to(self._root):
            raise ArtifactError(f"builtin: '{ref.id}' is no path below the built-in families")
        if not path.exists():
            raise ArtifactError(f"builtin: '{ref.id}' is missing in this installation; install xi-inference again")
        return path
