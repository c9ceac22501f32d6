"""Every spec of every built-in family against every engine's `match`, on three machines: compared with `tests/data/matching.txt`.

After a change that is meant, write it anew and look at the difference: `make matching`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.models.family import ModelSpec
from xi_plugins import families
from xi_plugins.engines.llama_cpp import plugin as llama_cpp
from xi_plugins.engines.mlx import plugin as mlx
from xi_plugins.engines.sglang import plugin as sglang
from xi_plugins.engines.transformers import plugin as transformers
from xi_plugins.engines.transformers import quantized
from xi_plugins.engines.vllm import plugin as vllm

SNAPSHOT = Path(__file__).parents[2] / "data" / "matching.txt"
GB = 10**9
HOSTS = {
    "Linux, CPU": HostInfo(system="linux", machine="x86_64", python="3.11.9", cpus=16, memory=64 * GB),
    "Linux, 8 x H100": HostInfo(
        system="linux", machine="x86_64", python="3.11.9", cpus=192, memory=2000 * GB, device_kinds=("cuda",), device_memory=80 * GB
    ),
    "Mac": HostInfo(system="darwin", machine="arm64", python="3.12.4", cpus=12, memory=36 * GB),
}
ENGINES = [info for module in (llama_cpp, mlx, sglang, transformers, vllm) for info in module.xi_engines()]
HEAD = """\
# Which engine takes which spec of the built-in families, where its library is installed. Written by `make matching`.
# FAMILY FORMAT SIZES QUANTIZATIONS: engines, the one that is chosen first; then why the others don't.
"""


def render() -> str:
    """The whole snapshot."""
    there = patch.object(quantized, "installed", lambda *_: Support(ok=True)), patch.object(quantized, "version_of", lambda _: "1.0")
    with there[0], there[1]:  # whatever is installed where this runs
        return HEAD + "".join(f"\n== {name}\n{''.join(_host(host))}" for name, host in HOSTS.items())


def _host(host: HostInfo) -> Iterator[str]:
    engines = sorted(ENGINES, key=lambda engine: -engine.priority_on(host))
    reasons: dict[str, None] = {}
    for family in families.xi_model_families():
        rows: dict[tuple[str, str], list[ModelSpec]] = {}
        for spec in family.specs:
            rows.setdefault((spec.format, _engines(engines, spec, host)), []).append(spec)
            reasons.update(dict.fromkeys(_refusals(engines, spec, host)))
        for (model_format, taken), specs in rows.items():
            sizes = ",".join(dict.fromkeys(spec.size_in_billions or "-" for spec in specs))
            quantizations = ",".join(dict.fromkeys(spec.quantization or "none" for spec in specs))
            yield f"{family.name} {model_format} {sizes} {quantizations}: {taken}\n"
    yield from sorted(f"-- {reason}\n" for reason in reasons)


def _engines(engines: list[EngineInfo], spec: ModelSpec, host: HostInfo) -> str:
    answers = {engine.name: engine.match(spec, host) for engine in engines}
    return ", ".join(name + (" (perhaps)" if answer.reason else "") for name, answer in answers.items() if answer.ok) or "none"


def _refusals(engines: list[EngineInfo], spec: ModelSpec, host: HostInfo) -> Iterator[str]:
    for engine in engines:
        support = engine.match(spec, host)
        if support.reason:
            yield f"{engine.name}, {spec.model_type} {spec.format}: {support.reason}"


def test_matching_is_as_recorded() -> None:
    assert render().splitlines() == SNAPSHOT.read_text(encoding="utf-8").splitlines(), "if the change is meant: make matching"


def test_every_spec_has_an_engine_on_a_gpu_or_a_mac() -> None:
    for family in families.xi_model_families():
        for spec in family.specs:
            taken = [engine.name for host in HOSTS.values() for engine in ENGINES if engine.match(spec, host).ok]
            assert taken or spec.architecture in transformers.OWN_CODE, spec.describe()


def test_who_is_refused_is_told_why() -> None:
    for family in families.xi_model_families():
        for spec in family.specs:
            for host in HOSTS.values():
                for engine in ENGINES:
                    support = engine.match(spec, host)
                    assert support.ok or support.reason, (engine.name, spec.describe())


if __name__ == "__main__":
    SNAPSHOT.write_text(render(), encoding="utf-8")
