"""Sources: where weights come from. A source turns a spec's reference into pinned files on this machine's disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from xi_core.api.transfer import ModelTransfer
from xi_core.models.family import SourceRef


class Progress(Protocol):
    """Hears how far the way to an artifact is. What it raises ends that: nobody wants the artifact any more."""

    def __call__(self, stage: str, share: float | None, download: ModelTransfer | None = None, /) -> None:
        """`stage`: in words. `share`: of the stage, 0 to 1, None where it hasn't grown or isn't known. `download`: while files come."""


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
