"""An artifact on the worker's disk, from the source that its model spec names."""

from __future__ import annotations

from pathlib import Path

from xi_core.errors import ArtifactError, PluginError
from xi_core.importing import import_path
from xi_core.models.family import SourceRef
from xi_core.models.source import Progress, Source, SourceInfo
from xi_core.plugins import Registry


def fetch(sources: Registry[SourceInfo], home: Path, ref: SourceRef, progress: Progress) -> Path:
    """In a thread: the artifact that `ref` names. Raises `ArtifactError`, `PluginError`."""
    return source_of(sources, ref).fetch(ref, home, progress)


def source_of(sources: Registry[SourceInfo], ref: SourceRef) -> Source:
    """The source that `ref` names. Raises `ArtifactError`, `PluginError`."""
    info = sources.find(ref.source)
    if info is None:
        raise ArtifactError(f"no plugin offers the model source '{ref.source}'; known: {', '.join(sources.names()) or 'none'}")
    source = import_path(info.source)()
    if not isinstance(source, Source):
        raise PluginError(f"model source '{info.name}': {info.source} is not a subclass of xi_core.models.source.Source")
    return source
