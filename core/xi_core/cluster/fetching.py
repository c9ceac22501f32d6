"""An artifact on the worker's disk, from the source that its model spec names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from xi_core.cluster.messages import StartReplica
from xi_core.config import Settings
from xi_core.errors import ArtifactError, PluginError
from xi_core.importing import import_path
from xi_core.models.family import SourceRef
from xi_core.models.hub import HubSource
from xi_core.models.source import Progress, Source, SourceInfo
from xi_core.plugins import PluginHub, Registry


def fetcher(hub: PluginHub, config: Settings, start: StartReplica) -> Callable[[SourceRef, Progress], Path]:
    """What gets the artifact of one replica, with what this machine's operator lets it have."""
    engine = hub.engines.find(start.plan.engine.name)
    code, pickles = start.spec.trust_remote_code, engine is not None and engine.pickles
    return lambda ref, progress: fetch(hub.sources, config.home_dir, permitted(ref, config, code=code, pickles=pickles), progress)


def permitted(ref: SourceRef, config: Settings, *, code: bool, pickles: bool) -> SourceRef:
    """`ref` with what it may bring beside plain weights, whatever it says itself, each with the operator's yes only: code where the launch
    wants it (`code`), and pickled weights where its engine heeds the opt-in (`pickles`)."""
    return msgspec.structs.replace(ref, code=code and config.allow_remote_code, pickled=pickles and config.allow_pickled_weights)


def fetch(sources: Registry[SourceInfo], home: Path, ref: SourceRef, progress: Progress) -> Path:
    """In a thread: the artifact that `ref` names. Raises `ArtifactError`, `PluginError`."""
    return source_of(sources, ref).fetch(ref, home, progress)


def pull(sources: Registry[SourceInfo], home: Path, ref: SourceRef, progress: Progress) -> Path:
    """In a thread: as `fetch`, and brought up to date where its source is over the network."""
    source = source_of(sources, ref)
    return source.pull(ref, home, progress) if isinstance(source, HubSource) else source.fetch(ref, home, progress)


def source_of(sources: Registry[SourceInfo], ref: SourceRef) -> Source:
    """The source that `ref` names. Raises `ArtifactError`, `PluginError`."""
    info = sources.find(ref.source)
    if info is None:
        raise ArtifactError(f"no plugin offers the model source '{ref.source}'; known: {', '.join(sources.names()) or 'none'}")
    source = import_path(info.source)()
    if not isinstance(source, Source):
        raise PluginError(f"model source '{info.name}': {info.source} is not a subclass of xi_core.models.source.Source")
    return source
