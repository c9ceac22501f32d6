"""What the engine `transformers` says of checkpoints that are quantized already, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from xi_core.engine.info import HostInfo, ShardRequest, Support
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.engines.transformers import plugin, quantized

GB = 10**9
CPU = HostInfo(system="linux", machine="x86_64", python="3.11", cpus=2, memory=16 * GB)
GPU = msgspec.structs.replace(CPU, device_kinds=("cuda",), device_memory=80 * GB)


def spec(quantization: str | None, format: str = "pytorch", **fields: object) -> ModelSpec:
    return ModelSpec(name="m", format=format, source=SourceRef(source="local", id="/m"), quantization=quantization, **fields)  # type: ignore[arg-type]


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The distributions that seem to be installed: whatever is put in."""
    names = ["accelerate"]

    def installed(module: str, distributions: Sequence[str], oldest: tuple[int, int], install: str) -> Support:
        name = distributions[0]
        return Support(ok=name in names, reason=f"{name} is not installed; install it with: {install}")

    monkeypatch.setattr(quantized, "installed", installed)
    monkeypatch.setattr(quantized, "version_of", lambda distributions: "99.0" if distributions[0] in names else None)
    return names


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (spec(None), ""),
        (spec("none"), ""),
        (spec("bf16"), ""),
        (spec("gptq-4bit"), "gptq"),
        (spec("awq-4bit"), "awq"),
        (spec("compressed-tensors"), "compressed-tensors"),
        (spec("bitsandbytes"), "bitsandbytes"),
        (spec("fp8"), "fp8"),
        (spec("fbgemm_fp8"), "fbgemm_fp8"),
        (spec("modelopt"), "modelopt"),
        (spec("newest-3bit"), "newest"),
        (spec("Int4", "gptq"), "gptq"),
        (spec("Int4", "awq"), "awq"),
        (spec(None, "fp8"), "fp8"),
        (spec("fbgemm_fp8", "fp8"), "fbgemm_fp8"),
    ],
)
def test_the_method_is_read_of_the_spec(model: ModelSpec, method: str) -> None:
    assert quantized.method_of(model) == method


@pytest.mark.parametrize(
    ("model", "packages"),
    [
        (spec("gptq-4bit"), ["optimum", "gptqmodel"]),
        (spec("Int4", "gptq"), ["optimum", "gptqmodel"]),
        (spec("awq-4bit"), ["gptqmodel"]),
        (spec("compressed-tensors"), ["compressed-tensors"]),
        (spec("bitsandbytes"), ["bitsandbytes"]),
        (spec("torchao"), ["torchao"]),
        (spec("quanto"), ["optimum-quanto"]),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_pip_line(have: list[str], model: ModelSpec, packages: list[str]) -> None:
    refused = plugin.match(model, CPU)
    assert not refused.ok
    for name in packages:
        assert f"{name} is not installed; install it with: pip install" in refused.reason
    have += packages
    assert plugin.match(model, CPU).ok
    assert plugin.match(model, GPU).ok


def test_a_library_of_the_extra_is_named_by_the_extra(have: list[str]) -> None:
    assert "pip install 'xi-inference[transformers-quantization]'" in plugin.match(spec("bitsandbytes"), CPU).reason
    assert "pip install 'gptqmodel>=1.4'" in plugin.match(spec("awq-4bit"), CPU).reason


def test_packages_of_the_models_own_environment_count(have: list[str]) -> None:
    assert plugin.match(spec("gptq-4bit", packages=["GPTQModel>=5", "optimum"]), CPU).ok
    assert not plugin.match(spec("gptq-4bit", packages=["gptqmodel-tools", "optimum"]), CPU).ok


@pytest.mark.parametrize("method", ["fbgemm_fp8", "eetq", "hqq", "vptq"])
def test_what_needs_a_gpu_says_so_before_the_launch(have: list[str], method: str) -> None:
    have += quantized.PACKAGES
    refused = plugin.match(spec(method), CPU)
    assert not refused.ok
    assert "runs on a GPU only" in refused.reason
    assert plugin.match(spec(method), GPU).ok


def test_fp8_on_a_cpu_needs_room_for_what_it_becomes(have: list[str]) -> None:
    taken = plugin.match(spec("fp8", weight_bytes=4 * GB), CPU)
    assert taken.ok
    assert "become bfloat16" in taken.reason
    refused = plugin.match(spec("fp8", weight_bytes=8 * GB), CPU)
    assert not refused.ok
    assert "16 GB, and this machine has 16 GB" in refused.reason
    assert not plugin.match(spec("fp8", "fp8", size_in_billions="8"), CPU).ok
    assert not plugin.match(spec("fp8"), GPU).ok, "on a GPU it needs a package more"
    have.append("kernels")
    assert plugin.match(spec("fp8"), GPU) == Support(ok=True)


def test_what_nobody_reads_is_refused_and_what_nobody_knows_is_a_doubt(have: list[str]) -> None:
    refused = plugin.match(spec("modelopt"), GPU)
    assert not refused.ok
    assert "can't read" in refused.reason
    doubted = plugin.match(spec("newest-3bit"), GPU)
    assert doubted.ok
    assert "quantized by newest" in doubted.reason


def test_every_method_names_packages_that_are_listed() -> None:
    for need in quantized.METHODS.values():
        assert {*need.packages, *need.on_gpu} <= quantized.PACKAGES.keys()


def test_quantized_checkpoints_are_not_sharded() -> None:
    request = ShardRequest(model=spec("gptq-4bit", architecture="Qwen2ForCausalLM"), options={}, n_worker=2, n_gpu=0)
    refused = plugin.shard(request)
    assert not refused.ok
    assert "quantized; this one is, by gptq" in refused.reason


def test_a_module_of_the_same_name_is_not_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """`optimum` brings a module of the name that `optimum-quanto` has too."""
    monkeypatch.setitem(quantized.PACKAGES, "optimum-quanto", ("msgspec", (0, 0)))
    monkeypatch.setitem(quantized.PACKAGES, "accelerate", ("msgspec", (0, 0)))
    reason = plugin.match(spec("quanto", packages=["accelerate"]), CPU).reason
    assert reason.endswith("optimum-quanto is not installed; install it with: pip install optimum-quanto")
