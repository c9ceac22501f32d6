"""Every built-in engine's plugin without its library: it is light, and it tells whether the library is there, which version, and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Collection
from typing import Any

import pytest
from msgspec import Struct

from xi_core.engine.info import HostInfo, Support
from xi_core.wire.manifest import STRUCTURED_FIELDS, Manifest
from xi_plugins.engines.llama_cpp import plugin as llama_cpp
from xi_plugins.engines.mlx import plugin as mlx
from xi_plugins.engines.sglang import plugin as sglang
from xi_plugins.engines.transformers import plugin as transformers
from xi_plugins.engines.vllm import plugin as vllm

LINUX = HostInfo(system="Linux", machine="x86_64", python="3.11", cpus=2, memory=2**33)
MAC = HostInfo(system="Darwin", machine="arm64", python="3.11", cpus=8, memory=2**34)


class Engine(Struct, kw_only=True):
    """An engine and its library: modules with the distributions that bring them, the library's own last."""

    plugin: Any
    extra: str
    libraries: dict[str, str]
    good: tuple[str, ...]
    bad: tuple[str, ...] = ()
    probe: Callable[[HostInfo], Support] | None = None
    full_manifest: Callable[..., Manifest] | None = None
    """Of token engines."""
    heavy: frozenset[str] = frozenset()
    """Other modules that the plugin must not import."""

    def look(self, host: HostInfo = LINUX) -> Support:
        """What its probe says."""
        return (self.probe or self.plugin.probe)(host)


ENGINES = {
    "llama.cpp": Engine(
        plugin=llama_cpp, extra="llama-cpp", libraries={"xllamacpp": "xllamacpp"}, good=("2026.10.1",), heavy=frozenset({"http.client"})
    ),
    "llama-cpp-python": Engine(
        plugin=llama_cpp,
        probe=llama_cpp.probe_python,
        full_manifest=llama_cpp.python_manifest,
        extra="llama-cpp-python",
        libraries={"llama_cpp": "llama-cpp-python"},
        good=("0.3.36", "0.3.36+cu124", "0.4", "1.0.0rc1"),
        bad=("0.3.35", "odd"),
    ),
    "mlx": Engine(
        plugin=mlx,
        full_manifest=mlx.full_manifest,
        extra="mlx",
        libraries={"mlx": "mlx", "mlx_lm": "mlx-lm"},
        good=("0.32.0", "0.40.1", "1.0.0"),
        bad=("0.31.9", "0.9"),
        heavy=frozenset({"transformers"}),
    ),
    "transformers": Engine(
        plugin=transformers,
        full_manifest=transformers.full_manifest,
        extra="transformers",
        libraries={"torch": "torch", "transformers": "transformers"},
        good=("5.20.0", "5.23.1", "5.21rc1"),
        bad=("5.19.9", "4.57.0", "6.0.0"),
        heavy=frozenset({"tokenizers"}),
    ),
    "vllm": Engine(plugin=vllm, extra="vllm", libraries={"vllm": "vllm"}, good=("0.12.0", "0.99.0+cpu"), bad=("0.1.0",)),
    "sglang": Engine(plugin=sglang, extra="sglang", libraries={"sglang": "sglang"}, good=("0.5.0", "0.99.0+cpu"), bad=("0.1.0",)),
}
EACH = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
TOKEN_ENGINES = pytest.mark.parametrize("full_manifest", [each.full_manifest for each in ENGINES.values() if each.full_manifest])


def versions(kind: str) -> list[Any]:
    return [pytest.param(engine, version, id=f"{name} {version}") for name, engine in ENGINES.items() for version in getattr(engine, kind)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[str], str | None], None]:
    """Makes this look like a machine with these modules, and one version, or no metadata, of whatever is asked for."""

    def install(modules: Collection[str], version: str | None) -> None:
        def version_of(name: str) -> str:
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in modules else None)
        monkeypatch.setattr(importlib.metadata, "version", version_of)

    return install


@EACH
def test_plugin_imports_no_engine_library(engine: Engine) -> None:
    heavy = {*engine.libraries, *engine.heavy, "numpy", "torch"}
    code = f"import sys, {engine.plugin.__name__}; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@EACH
def test_what_is_missing_is_named_with_the_pip_line(engine: Engine, machine: Any) -> None:
    line = f"pip install 'xi-inference[{engine.extra}]'"
    for module, distribution in engine.libraries.items():
        machine(engine.libraries.keys() - {module}, engine.good[0])
        assert engine.look() == Support(ok=False, reason=f"{distribution} is not installed; install it with: {line}")
    if len(engine.libraries) > 1:
        machine((), None)
        names = " and ".join(engine.libraries.values())
        assert engine.look() == Support(ok=False, reason=f"{names} are not installed; install them with: {line}")


@pytest.mark.parametrize(("engine", "version"), versions("good"))
def test_a_version_that_will_do_is_told(engine: Engine, version: str, machine: Any) -> None:
    machine(engine.libraries, version)
    assert engine.look() == Support(ok=True, reason=f"{list(engine.libraries.values())[-1]} {version}")


@pytest.mark.parametrize(("engine", "version"), versions("bad"))
def test_a_version_that_will_not_do_is_told_with_the_one_that_would(engine: Engine, version: str, machine: Any) -> None:
    machine(engine.libraries, version)
    found = engine.look()
    assert not found.ok
    assert f"{version} is installed" in found.reason
    assert "or later" in found.reason


@EACH
def test_another_module_of_that_name_is_not_it(engine: Engine, machine: Any) -> None:
    machine(engine.libraries, None)
    found = engine.look()
    assert not found.ok
    assert "is not properly installed" in found.reason


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_engines_of_linux_alone(name: str, machine: Any) -> None:
    engine = ENGINES[name]
    machine(engine.libraries, engine.good[0])
    assert "runs on Linux" in engine.look(MAC).reason


@TOKEN_ENGINES
def test_token_engines_promise_every_sampling_field(full_manifest: Callable[..., Manifest], machine: Any) -> None:
    machine({"llguidance"}, "1.0")
    for fields in full_manifest().endpoints.values():
        assert {"temperature", "top_p", "top_k", "min_p", "seed", "logit_bias", "repetition_penalty", "logprobs"} <= fields.keys()
        assert fields["logprobs"].maximum == 20
        assert all(fields[name].state == "yes" for name in STRUCTURED_FIELDS)
    assert "echo" not in full_manifest().endpoints["/v1/chat/completions"]
    for fields in full_manifest(ends=False).endpoints.values():
        assert all("no end token" in fields[name].reason for name in STRUCTURED_FIELDS)
    machine((), None)
    for fields in full_manifest().endpoints.values():
        assert all("llguidance is not installed: pip install 'xi-inference[" in fields[name].reason for name in STRUCTURED_FIELDS)
