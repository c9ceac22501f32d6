"""Engines in a container of 4 GiB and 3 of 64 processors: memory and threads are the container's, unless the launch says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xi_core import machine
from xi_core.engine.child_sharding import threads_in_quota
from xi_core.errors import XiError
from xi_core.machine import Cgroup
from xi_core.testing.harness import plan_for
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.llama_cpp import engine as llama_cpp
from xi_plugins.engines.llama_cpp.gguf import Header
from xi_plugins.engines.llama_cpp.llama_cpp_python import context, library
from xi_plugins.engines.llama_cpp.llama_cpp_python import engine as llama_cpp_python
from xi_plugins.engines.sglang.engine import _defaults
from xi_plugins.engines.transformers.engine import TransformersEngine
from xi_plugins.engines.transformers.pooling import TransformersEmbedder
from xi_plugins.engines.vllm.engine import _environment

GIB = 2**30
HEADER = Header(architecture="a", context_length=64, vocabulary_size=1, kv_values=1, has_chat_template=False, size=GIB)


class Reached(Exception):
    """So far and no further."""


@pytest.fixture(autouse=True)
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its cgroup's folder."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    for name, text in (("memory.max", str(4 * GIB)), ("memory.current", "0"), ("cpu.max", "250000 100000")):
        (folder / name).write_text(text)
    monkeypatch.setattr(machine, "_cgroups", lambda root, controller: [Cgroup(folder, unified=True)])
    monkeypatch.setattr(machine, "_of_machine", lambda root: (256 * GIB, 200 * GIB))
    monkeypatch.setattr(machine, "_cores", lambda root: 32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return folder


def plan(path: str = "engine:Class", devices: int = 0, **options: Any) -> LaunchPlan:
    made = plan_for(path, "/nothing", "pytorch", "uid", **options)
    made.devices = [f"cuda:{number}" for number in range(devices)]
    return made


# ---- llama.cpp, by both bindings ------------------------------------------------------------------


def ggml(free: int = 0) -> SimpleNamespace:
    """xllamacpp on the host, with a GPU where it has free memory."""
    found = [{"type": "CPU", "memory_total": 256 * GIB, "memory_free": 256 * GIB}]
    found += [{"type": "GPU", "memory_total": free, "memory_free": free}] if free else []
    return SimpleNamespace(
        ggml_backend_dev_type=SimpleNamespace(GGML_BACKEND_DEVICE_TYPE_CPU="CPU"),
        get_device_info=lambda: found,
        llama_max_parallel_sequences=lambda: 8,
    )


def test_memory_of_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert llama_cpp._memory(ggml(), plan()) == (0, 4 * GIB)
    assert llama_cpp._memory(ggml(80 * GIB), plan(devices=1)) == (72 * GIB, 4 * GIB)
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(0, 0))
    assert llama_cpp._memory(ggml(), plan()) == (0, 256 * GIB), "where xi doesn't know, ggml may"


@pytest.mark.parametrize(("options", "threads"), [({}, 3), ({"threads": 8}, 8)])
def test_threads_of_llama_cpp(monkeypatch: pytest.MonkeyPatch, options: dict[str, int], threads: int) -> None:
    def stop(*arguments: Any) -> None:
        assert arguments[-1] == threads
        raise Reached

    monkeypatch.setattr(llama_cpp, "_library", ggml)
    monkeypatch.setattr(llama_cpp, "read_header", lambda path: HEADER)
    monkeypatch.setattr(llama_cpp, "common_params", stop)
    with pytest.raises(Reached):
        llama_cpp.LlamaCppEngine().load(plan(**options), lambda stage, share: None)


def test_threads_of_llama_cpp_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(model: Any, options: Any, size: Any, threads: int | None, capacity: int) -> None:
        assert threads == 3
        raise Reached

    for name, found in (("load_library", ggml), ("memory", lambda on: (0, 4 * GIB)), ("read_header", lambda path: HEADER)):
        monkeypatch.setattr(llama_cpp_python, name, found)
    monkeypatch.setattr(llama_cpp_python, "load_model", lambda *_: SimpleNamespace(size=1, rewinds=False, window=0))
    monkeypatch.setattr(llama_cpp_python, "Context", stop)
    with pytest.raises(Reached):
        llama_cpp_python.LlamaCppPythonEngine().load(plan(), lambda stage, share: None)
    assert context.cpus is library.machine.cpus


# ---- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TransformersEngine, TransformersEmbedder])
@pytest.mark.parametrize(("options", "threads"), [({}, 3), ({"threads": 8}, 8)])
def test_threads_of_torch(monkeypatch: pytest.MonkeyPatch, kind: type, options: dict[str, int], threads: int) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with pytest.raises(XiError):
        kind().load(plan(**options), lambda stage, share: None)
    assert asked == [threads]


# ---- servers of their own -------------------------------------------------------------------------


def test_vllm_has_the_containers_memory_and_time(container: Path) -> None:
    found = _environment(plan())
    assert (found["VLLM_CPU_KVCACHE_SPACE"], found["VLLM_CPU_OMP_THREADS_BIND"], found["OMP_NUM_THREADS"]) == ("1", "nobind", "3")
    assert _environment(plan(tensor_parallel_size=2))["OMP_NUM_THREADS"] == "1"
    assert not {"VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"} & set(_environment(plan(devices=1)))
    (container / "memory.max").write_text(str(64 * GIB))
    assert _environment(plan())["VLLM_CPU_KVCACHE_SPACE"] == "8"
    (container / "memory.current").write_text(str(58 * GIB))
    assert _environment(plan())["VLLM_CPU_KVCACHE_SPACE"] == "3", "others have most of it"


def test_threads_of_sglang() -> None:
    assert _defaults(plan())["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in _defaults(plan(devices=1))


def test_where_time_is_not_limited_servers_count_by_themselves(container: Path) -> None:
    (container / "cpu.max").write_text("max 100000")
    assert threads_in_quota(plan()) == {}
    assert not {"VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"} & set(_environment(plan()))
