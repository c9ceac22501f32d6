"""Which cells of an engine's manifest its tests have proven: `@proves` marks a kit's tests, `ClaimsKit` compares at the end of a file.

A cell is a field on an endpoint. It is proven by an engine when at least one test that names it passed and none failed; a test that skips
says nothing. `ClaimsKit` also writes the results that `docs/reference/capabilities.md` is made from (`pytest --parity FOLDER`).
"""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec import Struct, field

from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.plugins import PluginHub
from xi_core.serving.request import CHAT, COMPLETIONS

HOST = HostInfo(system="Linux", machine="x86_64", python="3.11", cpus=2, memory=8 * 2**30)


class Parity(Struct, kw_only=True, omit_defaults=True):
    """An engine's committed results, one JSON file each: the fields proven on each endpoint by one version of it."""

    engine: str
    version: str = ""
    """As its `probe` gives it: `mlx-lm 0.32.2`."""
    unproven: str = ""
    """Why nothing could be proven here, for an engine that no run of the suite has seen."""
    proven: dict[str, list[str]] = field(default_factory=dict)
    excused: dict[str, dict[str, str]] = field(default_factory=dict)
    """Claimed fields of each endpoint that could not be proven where the suite ran, and why."""


@functools.lru_cache
def find_info(plugin: str, engine: str) -> EngineInfo:
    """The descriptor that `plugin`, a module, gives for `engine`, a `module:Class`."""
    hub = PluginHub()
    hub.register(importlib.import_module(plugin), "under-test")
    return next(info for info in hub.engines if engine in (info.engine, *info.engines_by_type.values()))


def claimed(info: EngineInfo, route: str) -> set[str]:
    """The fields that a descriptor says it honours on an endpoint, wholly or within limits."""
    return {name for name, cell in info.manifest.endpoints.get(route, {}).items() if cell.state != "no"}


class Ledger:
    """Outcomes of this process's tests: (engine, endpoint) → field → whether each test of it passed."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))

    def note(self, engine: str, route: str, fields: tuple[str, ...], passed: bool) -> None:
        """Keep one test's outcome."""
        for name in fields:
            self._outcomes[engine, route][name].append(passed)

    def proven(self, engine: str, route: str) -> set[str]:
        """Fields that some test proved and none refuted."""
        return {name for name, outcomes in self._outcomes[engine, route].items() if all(outcomes)}


LEDGER = Ledger()


def proves(*fields: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a kit's test: where it passes, the engine honours these fields on the kit's `route`."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def noted(kit: Any, *args: Any, **kwargs: Any) -> None:
            engine = find_info(kit.plugin, kit.plan.engine.path).name
            try:
                test(kit, *args, **kwargs)
            except pytest.skip.Exception:
                raise
            except BaseException:
                LEDGER.note(engine, kit.route, fields, False)
                raise
            LEDGER.note(engine, kit.route, fields, True)

        vars(noted)["proves"] = fields
        return noted

    return mark


class ClaimsKit:
    """The last class of an engine's test file: what the descriptor claims is what the classes above have proven, both ways."""

    plugin: ClassVar[str]
    engine: ClassVar[str]
    """`module:Class`, as in the plan."""
    routes: ClassVar[tuple[str, ...]] = (CHAT, COMPLETIONS)
    """The endpoints that the file tests."""
    unproven: ClassVar[dict[str, str]] = {}
    """Claimed fields that no test can prove on this engine where its tests run, and why."""

    def test_claims_are_proven_and_proofs_claimed(
        self, request: pytest.FixtureRequest, record_testsuite_property: Callable[[str, object], None]
    ) -> None:
        left_out = _left_out(request)
        if left_out:
            pytest.skip(f"only part of the file's tests run, without {left_out}")
        info = find_info(self.plugin, self.engine)
        record_testsuite_property("engine", info.probe(HOST).reason)
        folder = request.config.getoption("--parity", default=None)
        if folder:
            assert not hasattr(request.config, "workerinput"), "an engine's files share its results: run --parity in one process"
            write(Path(folder), info, self.routes, self.unproven)
        claims = {(route, name) for route in self.routes for name in claimed(info, route)}
        proofs = {(route, name) for route in self.routes for name in LEDGER.proven(info.name, route)}
        excused = {(route, name) for route in self.routes for name in self.unproven}
        missing, unclaimed, needless = claims - proofs - excused, proofs - claims, excused & proofs
        assert not missing, f"claimed, and no test marked @proves(FIELD) passed, or one failed: {sorted(missing)}"
        assert not unclaimed, f"proven, and the manifest doesn't claim it: {sorted(unclaimed)}"
        assert not needless, f"excused, and proven all the same: {sorted(needless)}"


def write(folder: Path, info: EngineInfo, routes: tuple[str, ...], unproven: Mapping[str, str]) -> None:
    """Put what was proven on `routes`, and what could not be, into the engine's file; keep other endpoints of the same version."""
    path = folder / file_name(info)
    version = info.probe(HOST).reason
    results = msgspec.json.decode(path.read_bytes(), type=Parity) if path.is_file() else Parity(engine=info.name)
    same = results.version == version
    proven = {**(results.proven if same else {}), **{route: sorted(LEDGER.proven(info.name, route)) for route in routes}}
    new = {route: {name: why for name, why in unproven.items() if name in claimed(info, route)} for route in routes}
    excused = {route: found for route, found in {**(results.excused if same else {}), **new}.items() if found}
    results = Parity(engine=info.name, version=version, proven=dict(sorted(proven.items())), excused=dict(sorted(excused.items())))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def file_name(info: EngineInfo) -> str:
    """Of an engine's results."""
    return f"{info.name.lower()}.json"


def _left_out(request: pytest.FixtureRequest) -> str:
    """A marked test of the file that this run leaves out; empty where all run."""
    present = {(item.cls, item.originalname) for item in request.session.items if isinstance(item, pytest.Function)}
    for kit in vars(request.module).values():
        if not (isinstance(kit, type) and kit.__name__.startswith("Test") and hasattr(kit, "route")):
            continue
        missing = [name for name in dir(kit) if hasattr(getattr(kit, name), "proves") and (kit, name) not in present]
        if missing:
            return f"{kit.__name__}::{missing[0]}"
    return ""
