"""A plugin whose engine dies at its start, or at each request with certain words, or then takes more memory than there is. Loaded by the town's processes, from this folder."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

from xi_core.engine.base import LoadedModel, Progress, SamplingParams
from xi_core.engine.info import EngineInfo, EngineOptions, Support
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef
from xi_core.models.source import Progress as SourceProgress
from xi_core.models.source import Source, SourceInfo
from xi_core.testing.fake_plugin import FakeOptions, counting_manifest
from xi_core.testing.fakes import CountingEngine
from xi_core.wire.plan import LaunchPlan

FORMAT = "doomed"
MODEL = "doomed"
POISON = "Drop dead!"
"""A request with these words ends it."""
FEAST = "Eat it all!"
"""A request with these words makes it take all the memory it may have."""
ROOM = 256 * 2**20
PORTION = 16 * 2**20
LAST_WORDS = "the sky fell on the engine"


class DyingOptions(FakeOptions, EngineOptions):
    """`dies_at_start`: it dies as it loads."""

    dies_at_start: bool = False


class DyingEngine(CountingEngine):
    """Counts until it dies."""

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        if plan.options.get("dies_at_start"):
            _die()
        return super().load(plan, progress)

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        if POISON.encode() in bytes(prompt):
            _die()
        if FEAST.encode() in bytes(prompt):
            _eat()
        super().add(id, prompt, sampling)


def _die() -> None:
    print("before it all went well", file=sys.stderr)
    print(LAST_WORDS, file=sys.stderr, flush=True)
    os._exit(9)


def _eat() -> None:
    """Take memory in portions until the system refuses one, as it does where a container's or a user's limit is reached."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, resource.RLIM_INFINITY))
    hoard = []
    while True:
        hoard.append(bytearray(PORTION))


class Nowhere(Source):
    """A model that consists of an empty folder."""

    def fetch(self, ref: SourceRef, home: Path, progress: SourceProgress) -> Path:
        path = home / ref.id
        path.mkdir(parents=True, exist_ok=True)
        return path


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    """The engine `dying`."""
    yield EngineInfo(
        name="dying",
        engine="dying_engine:DyingEngine",
        formats=(FORMAT,),
        manifest=counting_manifest(),
        probe=lambda host: Support(ok=True, reason="always here"),
        match=lambda spec, host: Support(ok=spec.format == FORMAT, reason=f"takes the format {FORMAT} only"),
        options=DyingOptions,
    )


@hookimpl
def xi_model_sources() -> Iterable[SourceInfo]:
    """The source `nowhere`."""
    yield SourceInfo(name="nowhere", source="dying_engine:Nowhere")


@hookimpl
def xi_model_families() -> Iterable[ModelFamily]:
    """The model `doomed`."""
    yield ModelFamily(
        name=MODEL, description="", specs=[ModelSpec(name=MODEL, format=FORMAT, source=SourceRef(source="nowhere", id=MODEL))]
    )
