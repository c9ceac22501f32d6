"""The plugin of the sharded test engine: the engine, a source that looks in the worker's own home, and a model of both."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from xi_core.engine.info import EngineInfo, EngineOptions, HostInfo, ShardRequest, Support
from xi_core.errors import ArtifactError
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef
from xi_core.models.source import Progress, Source, SourceInfo
from xi_core.testing.fake_plugin import FakeOptions, counting_manifest

FORMAT = "shards"
MODEL = "in-parts"
WEIGHTS = "weights"
"""Folder of a worker's home that must exist where it is to load the model."""
HOLD = "hold"
"""While a worker's home has a file of this name, its preparation takes; it gets on while the file holds the word `SLOWLY`."""
SLOWLY = "slowly"
Fault = Literal["", "die", "hang", "deaf", "taken", "differ", "slow"]


class ShardedOptions(FakeOptions, EngineOptions):
    """What goes wrong, at which rank, and after how many of its steps."""

    fault: Fault = ""
    """`die`: at its start. `slow`: it loads for ever. `deaf`: it doesn't talk to the others. `taken`: its port
    is, the first time. `hang`, `differ`: in a step."""
    fault_rank: int = 1
    fault_after: int = 3


class HomeSource(Source):
    """The id is a folder below the worker's own home."""

    def fetch(self, ref: SourceRef, home: Path, progress: Progress) -> Path:
        began = time.monotonic()
        while (word := _word(home / HOLD)) is not None:
            progress("held", 1 - 1 / (1 + time.monotonic() - began) if word == SLOWLY else None)
            time.sleep(0.05)
        path = home / ref.id
        if not path.is_dir():
            raise ArtifactError(f"{ref.id} is missing in this worker's home")
        return path


def _word(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _match(spec: ModelSpec, host: HostInfo) -> Support:
    return Support(ok=spec.format == FORMAT, reason=f"takes the format {FORMAT} only")


def _shard(request: ShardRequest) -> Support:
    return Support(ok=request.n_worker <= 4, reason="it is cut into 4 parts at most")


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    """The engine `sharded`."""
    yield EngineInfo(
        name="sharded",
        engine="xi_core.testing.sharded:ShardedEngine",
        formats=(FORMAT,),
        manifest=counting_manifest(),
        probe=lambda host: Support(ok=True, reason="always here"),
        match=_match,
        options=ShardedOptions,
        shard=_shard,
    )


@hookimpl
def xi_model_sources() -> Iterable[SourceInfo]:
    """The source `home`."""
    yield SourceInfo(name="home", source=f"{__name__}:HomeSource")


@hookimpl
def xi_model_families() -> Iterable[ModelFamily]:
    """The model `in-parts`."""
    spec = ModelSpec(name=MODEL, format=FORMAT, source=SourceRef(source="home", id=WEIGHTS))
    yield ModelFamily(name=MODEL, description="", specs=[spec])
