"""The `local` source: files that are on the worker's machine already."""

from __future__ import annotations

from pathlib import Path

from xi_core.errors import ArtifactError
from xi_core.models.family import SourceRef
from xi_core.models.inspect import local_path
from xi_core.models.source import Progress, Source


class LocalSource(Source):
    """The id is a path or a `file://` URL. Nothing is copied."""

    def fetch(self, ref: SourceRef, home: Path, progress: Progress) -> Path:
        path = local_path(ref.id)
        try:
            found = path.exists()
            empty = found and path.is_dir() and next(path.iterdir(), None) is None
        except OSError as error:
            raise ArtifactError(f"'{path}' can't be read: {error.strerror or error}", param="model_path") from None
        if not found:
            raise ArtifactError(
                f"'{path}' doesn't exist on the worker's machine; give the path of a model directory or of a .gguf file", param="model_path"
            )
        if empty:
            raise ArtifactError(f"the directory '{path}' is empty; it should hold a model", param="model_path")
        return path
