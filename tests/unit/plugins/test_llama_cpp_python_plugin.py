"""The light part of the engine `llama-cpp-python`: descriptor, probe, match, options, and its place beside the engine `llama.cpp`."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.errors import UnknownOption
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.engines.llama_cpp import plugin

HOST = HostInfo(system="Linux", machine="x86_64", python="3.11", cpus=2, memory=2**33)
HINT = "xllamacpp is not installed; this machine has llama-cpp-python: use --model-engine llama-cpp-python"


def both() -> list[EngineInfo]:
    return list(plugin.xi_engines())


def info() -> EngineInfo:
    return next(info for info in both() if info.name == "llama-cpp-python")


def spec(format: str = "ggufv2", **fields: str) -> ModelSpec:
    return ModelSpec(name="m", format=format, source=SourceRef(source="local", id="m"), **fields)


def installed(monkeypatch: pytest.MonkeyPatch, modules: set[str], version: str = "0.3.36") -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in modules else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)


def test_the_other_binding_is_not_named_where_neither_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, set())
    assert "llama-cpp-python" not in plugin.probe(HOST).reason


def test_the_other_binding_is_named_where_only_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"llama_cpp"})
    support = plugin.probe(HOST)
    assert not support.ok
    assert support.reason.startswith(HINT)
    assert "pip install 'xi-inference[llama-cpp]'" in support.reason


def test_llama_cpp_comes_first_where_both_are_installed() -> None:
    first, second = both()
    assert (first.name, second.name) == ("llama.cpp", "llama-cpp-python")
    assert first.priority > second.priority > 0
    assert first.formats == second.formats


@pytest.mark.parametrize(
    ("wanted", "ok", "named"),
    [
        (spec(), True, ""),
        (spec("pytorch"), False, "ggufv2"),
        (spec(model_type="embedding"), False, "the engine llama.cpp does"),
        (spec(model_type="rerank"), False, "the engine llama.cpp does"),
        (spec(model_type="video"), False, "video"),
    ],
)
def test_match(wanted: ModelSpec, ok: bool, named: str) -> None:
    support = plugin.match_python(wanted, HOST)
    assert support.ok is ok
    assert named in support.reason


def test_options_are_those_of_both_bindings() -> None:
    given = {"n_ctx": "512", "flash-attn": "on", "cache_type_k": "q8_0", "n_batch": 64, "ngl": -1, "parallel": 4}
    assert info().check_options(given) == {
        "context_length": 512, "flash_attention": "on", "cache_type_k": "q8_0", "batch_size": 64, "n_gpu_layers": -1, "slots": 4,
    }  # fmt: skip
    own, other = (set(each.options.__struct_fields__) for each in (info(), both()[0]) if each.options)
    assert other - own == {"kv_unified", "grammars"}
    assert own < other


@pytest.mark.parametrize(("name", "value"), [("batch_size", 1), ("slots", 0), ("cache_type_v", "q9"), ("kv_unified", True), ("lora", "x")])
def test_wrong_options_are_refused(name: str, value: object) -> None:
    with pytest.raises(UnknownOption, match=name) as caught:
        info().check_options({name: value})
    assert caught.value.param == name
