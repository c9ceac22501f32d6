"""Sources: where weights come from. A source turns a spec's reference into pinned files on this machine's disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from xi_core.models.family import SourceRef

Progress = Callable[[str, float | None], None]


class Source(ABC):
    """Fetches artifacts. Called in a worker, off its loop."""

    @abstractmethod
    def fetch(self, ref: SourceRef, home: Path, progress: Progress) -> Path:
        """The directory or file that `ref` names, complete. Raises `ArtifactError`, saying what is missing and what to do."""


class SourceInfo(Struct, kw_only=True):
    """Descriptor of a source: its name and `module:Class`."""

    name: str
    source: str
    description: str = ""
