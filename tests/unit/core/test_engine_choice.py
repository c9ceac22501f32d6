"""Which engine and spec a launch gets that names none, machine by machine."""

from __future__ import annotations

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.cluster.engine_choice import fits, priority, ranked, weights_of
from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.engines.llama_cpp import plugin as llama_cpp
from xi_plugins.engines.mlx import plugin as mlx
from xi_plugins.engines.sglang import plugin as sglang
from xi_plugins.engines.transformers import plugin as transformers
from xi_plugins.engines.vllm import plugin as vllm

GB = 10**9
ENGINES = [info for module in (mlx, transformers, sglang, vllm, llama_cpp) for info in module.xi_engines()]
CPU = HostInfo(system="linux", machine="x86_64", python="3.12.0", cpus=16, memory=64 * GB)
SMALL_CPU = HostInfo(system="linux", machine="x86_64", python="3.12.0", cpus=4, memory=8 * GB)
H100 = HostInfo(system="linux", machine="x86_64", python="3.12.0", cpus=96, memory=2000 * GB, device_kinds=("cuda",), device_memory=80 * GB)
SMALL_GPU = HostInfo(
    system="linux", machine="x86_64", python="3.12.0", cpus=8, memory=32 * GB, device_kinds=("cuda",), device_memory=8 * GB
)
MAC = HostInfo(system="darwin", machine="arm64", python="3.12.0", cpus=12, memory=36 * GB)
WINDOWS = HostInfo(system="windows", machine="AMD64", python="3.12.0", cpus=12, memory=36 * GB)
HOSTS = {"cpu": CPU, "small-cpu": SMALL_CPU, "h100": H100, "small-gpu": SMALL_GPU, "mac": MAC, "windows": WINDOWS}

ALL = ("mlx", "transformers", "SGLang", "vLLM", "llama.cpp", "llama-cpp-python")


def spec(model_format: str, size: str, quantization: str = "none") -> ModelSpec:
    source = SourceRef(source="huggingface", id=f"me/{size}-{model_format}-{quantization}")
    return ModelSpec(name="m", format=model_format, source=source, size_in_billions=size, quantization=quantization)


FAMILY = [
    *(spec("pytorch", size) for size in ("7", "70")),
    *(spec("gptq", size, quantization) for size in ("7", "70") for quantization in ("Int8", "Int4")),
    *(spec("ggufv2", size, quantization) for size in ("7", "70") for quantization in ("q2_k", "q4_k_m", "q8_0")),
    *(spec("mlx", size, quantization) for size in ("7", "70") for quantization in ("8bit", "4bit")),
]


def first(host: HostInfo, installed: tuple[str, ...], **fields: object) -> str:
    """Engine and spec that a launch gets on this host, among the engines that are installed and take it."""
    launch = LaunchSpec(model_name="m", **fields)  # type: ignore[arg-type]
    models = [m for m in FAMILY if launch.size_in_billions in (None, m.size_in_billions)]
    engines = [engine for engine in ENGINES if engine.name in installed]
    engine, model = next((e, m) for e, m in ranked(engines, models, [host], launch) if m.format in e.formats and e.match(m, host).ok)
    return f"{engine.name} {model.size_in_billions} {model.format} {model.quantization}"


@pytest.mark.parametrize(
    ("host", "installed", "fields", "chosen"),
    [
        ("h100", ALL, {}, "vLLM 7 pytorch none"),
        ("h100", ("SGLang", "transformers", "llama.cpp"), {}, "SGLang 7 pytorch none"),
        ("h100", ("transformers", "llama.cpp"), {}, "transformers 7 pytorch none"),
        ("h100", ("llama.cpp",), {}, "llama.cpp 7 ggufv2 q4_k_m"),
        ("h100", ALL, {"size_in_billions": "70"}, "vLLM 70 gptq Int4"),
        ("h100", ALL, {"size_in_billions": "70", "n_gpu": 4}, "vLLM 70 pytorch none"),
        ("h100", ALL, {"n_gpu": None}, "llama.cpp 7 ggufv2 q4_k_m"),
        ("small-gpu", ALL, {}, "vLLM 7 gptq Int4"),
        ("small-gpu", ("transformers", "llama.cpp"), {}, "llama.cpp 7 ggufv2 q4_k_m"),
        ("small-gpu", ("vLLM", "llama.cpp"), {"size_in_billions": "70"}, "llama.cpp 70 ggufv2 q2_k"),
        ("cpu", ALL, {}, "llama.cpp 7 ggufv2 q4_k_m"),
        ("cpu", ("llama-cpp-python", "transformers"), {}, "llama-cpp-python 7 ggufv2 q4_k_m"),
        ("cpu", ("transformers", "vLLM", "SGLang", "mlx"), {}, "transformers 7 pytorch none"),
        ("cpu", ("vLLM", "SGLang", "mlx"), {}, "vLLM 7 pytorch none"),
        ("small-cpu", ("llama.cpp", "transformers"), {}, "llama.cpp 7 ggufv2 q4_k_m"),
        ("mac", ALL, {}, "mlx 7 mlx 4bit"),
        ("mac", ("llama.cpp", "transformers"), {}, "llama.cpp 7 ggufv2 q4_k_m"),
        ("mac", ("transformers",), {}, "transformers 7 pytorch none"),
        ("windows", ALL, {}, "llama.cpp 7 ggufv2 q4_k_m"),
    ],
)
def test_what_is_chosen(host: str, installed: tuple[str, ...], fields: dict[str, object], chosen: str) -> None:
    assert first(HOSTS[host], installed, **fields) == chosen


@pytest.mark.parametrize(
    ("host", "order"),
    [
        ("h100", ["vLLM", "SGLang", "transformers", "llama.cpp", "llama-cpp-python", "mlx"]),
        ("cpu", ["llama.cpp", "llama-cpp-python", "transformers", "vLLM", "SGLang", "mlx"]),
        ("mac", ["mlx", "llama.cpp", "llama-cpp-python", "transformers", "vLLM", "SGLang"]),
    ],
)
def test_engines_by_host(host: str, order: list[str]) -> None:
    assert [e.name for e in sorted(ENGINES, key=lambda e: -priority(e, [HOSTS[host]]))] == order


def test_of_several_hosts_the_best_counts() -> None:
    engine = next(e for e in ENGINES if e.name == "vLLM")
    assert priority(engine, [CPU, H100]) == priority(engine, [H100]) > priority(engine, [CPU])
    assert priority(engine, []) == engine.priority
    by_one_number = EngineInfo(
        name="x", engine="x:Y", formats=(), manifest=engine.manifest, probe=engine.probe, match=engine.match, priority=7
    )
    assert priority(by_one_number, [H100, MAC]) == 7


def test_weights_are_known_by_files_figures_or_size() -> None:
    assert weights_of(spec("pytorch", "7")) == 14 * GB
    assert weights_of(ModelSpec(name="m", format="pytorch", source=SourceRef(source="local", id="/m"), weight_bytes=5)) == 5
    unknown = ModelSpec(name="m", format="pytorch", source=SourceRef(source="local", id="/m"))
    assert weights_of(unknown) is None
    assert fits(unknown, SMALL_CPU)
    assert fits(spec("ggufv2", "70", "in-some-way"), SMALL_CPU), "what nobody knows is no reason to put it last"
    assert fits(spec("pytorch", "7"), HostInfo(system="linux", machine="x", python="3", cpus=1, memory=0))
