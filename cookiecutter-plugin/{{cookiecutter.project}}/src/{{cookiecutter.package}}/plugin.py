"""Tells xi about the engine `{{ cookiecutter.name }}`. Imported by every xi process, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from xi_core.engine.info import EngineInfo, EngineOptions, HostInfo, Support
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import COMMON_FIELDS, YES, Manifest, of_fields

FORMAT = "text"


class Options(EngineOptions):
    """What users may set: `xi launch … --slots 8`."""

    slots: Annotated[int, Meta(ge=1)] = 8
    """Requests that run at once."""
    context_length: Annotated[int, Meta(ge=2)] = 4096
    """Most tokens of prompt and answer together."""


def manifest() -> Manifest:
    """Fields that the engine honours. One that is missing here is refused with a 400 that names it."""
    fields = dict.fromkeys(COMMON_FIELDS, YES)
    return of_fields(chat=fields, completions={**fields, "echo": YES})


def probe(host: HostInfo) -> Support:
    """Whether the engine can run on this machine: look for your library with `importlib.util.find_spec`, don't import it."""
    return Support(ok=True, reason=version("{{ cookiecutter.project }}"))


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether the engine takes this model; if not, why."""
    if spec.format != FORMAT:
        return Support(ok=False, reason=f"takes text files, not {spec.format}")
    return Support(ok=True)


def inspect(path: Path) -> ModelSpec | None:
    """The model that a local path holds, for formats that only this engine knows; None for any other path."""
    if path.suffix != ".txt" or not path.is_file():
        return None
    return ModelSpec(name=path.stem, format=FORMAT, source=SourceRef(source="local", id=str(path)))


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    yield EngineInfo(
        name="{{ cookiecutter.name }}",
        engine="{{ cookiecutter.package }}.engine:MarkovEngine",
        formats=(FORMAT,),
        manifest=manifest(),
        probe=probe,
        match=match,
        inspect=inspect,
        options=Options,
        description="{{ cookiecutter.description }}",
    )
