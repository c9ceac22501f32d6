"""Built-in sources: where weights come from."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.hookspecs import hookimpl
from xi_core.models.source import SourceInfo


@hookimpl
def xi_model_sources() -> Iterable[SourceInfo]:
    """Files on this machine, the tiny model that is shipped with xi, and two hubs."""
    return [
        SourceInfo(
            name="local", source="xi_plugins.sources.local:LocalSource", description="A path or file:// URL on the worker's machine"
        ),
        SourceInfo(name="builtin", source="xi_plugins.sources.builtin:BuiltinSource", description="Model files shipped with xi"),
        SourceInfo(name="huggingface", source="xi_plugins.sources.huggingface:HuggingFaceSource", description="The Hugging Face hub"),
        SourceInfo(name="modelscope", source="xi_plugins.sources.modelscope:ModelScopeSource", description="ModelScope"),
    ]
