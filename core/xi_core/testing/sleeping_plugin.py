"""The plugin of a model that can sleep, for tests: `dozer`, of an engine over the stub server."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xi_core.engine.info import EngineInfo, EngineOptions, Support
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef
from xi_core.testing.fake_plugin import full_manifest

MODEL = "dozer"
FORMAT = "dozing"


class StubOptions(EngineOptions):
    """Some of the stub server's."""

    sleep_mode: str = ""
    pace: float = 0.0


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    """The engine `stub`."""
    yield EngineInfo(
        name="stub",
        engine="xi_core.testing.stub_engine:StubServerEngine",
        formats=(FORMAT,),
        manifest=full_manifest(),
        probe=lambda host: Support(ok=True, reason="always here"),
        match=lambda spec, host: Support(ok=spec.format == FORMAT, reason=f"takes the format {FORMAT} only"),
        options=StubOptions,
    )


@hookimpl
def xi_model_families() -> Iterable[ModelFamily]:
    """The model `dozer`, whose files nobody reads."""
    spec = ModelSpec(name=MODEL, format=FORMAT, source=SourceRef(source="local", id=str(Path(__file__).parent)))
    yield ModelFamily(name=MODEL, description="", specs=[spec])
