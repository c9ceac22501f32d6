"""Built-in sources: where weights come from."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.hookspecs import hookimpl
from xi_core.models.source import SourceInfo


@hookimpl
def xi_model_sources() -> Iterable[SourceInfo]:
    """Files on this machine, and the tiny model that is shipped with xi."""
    return [
        SourceInfo(
            name="local", source="xi_plugins.sources.local:LocalSource", description="A path or file:// URL on the worker's machine"
        ),
        SourceInfo(name="builtin", source="xi_plugins.sources.builtin:BuiltinSource", description="Model files shipped with xi"),
    ]
