"""Which engine and which of a model's specs a launch gets that names none. Pure: `resolve` asks workers what matches and takes the first.

In this order:

1. What fits: weights that neither the largest device nor, for GGUF files (which llama.cpp may leave in main memory), the machine's memory
   can hold come last. So a machine that is short of memory gets a quantized spec, and llama.cpp where only its files are small enough.
2. The engine's priority on the workers' machines (`EngineInfo.priority_on`), which its plugin tells. Built-in engines: on Linux with a
   GPU vLLM, SGLang, transformers, llama.cpp; without one llama.cpp, transformers, vLLM, SGLang; on a Mac MLX, llama.cpp, transformers.
3. The format that the engine prefers, then the quantization that people use most (`USUAL`), then the family's own order: small sizes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from xi_core.api.control import LaunchSpec
from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.errors import InvalidRequest
from xi_core.models import memory
from xi_core.models.family import ModelSpec
from xi_core.models.weight_bits import bits_of

Pair = tuple[EngineInfo, ModelSpec]
USUAL = ("none", "q4_k_m", "q4_k_s", "q4_0", "mxfp4", "fp8", "4bit", "int4", "q5_k_m", "q8_0", "8bit", "int8")
"""Quantizations, the one that is taken by default first."""
FREE = 0.9
"""Part of a memory that weights may take: the cache and what is computed with need some too."""


def ranked(engines: Iterable[EngineInfo], models: Sequence[ModelSpec], hosts: Sequence[HostInfo], spec: LaunchSpec) -> list[Pair]:
    """Every engine with every model of a format that it loads, the best first. `hosts`: the workers that may take the launch."""
    asked = [_as_asked(host, spec) for host in hosts]
    devices = (spec.n_gpu if isinstance(spec.n_gpu, int) and spec.n_gpu > 1 else 1) * spec.n_worker
    short = [not any(fits(model, host, devices) for host in asked) if asked else False for model in models]

    def rank(pair: tuple[EngineInfo, int]) -> tuple[bool, int, int, int, int]:
        engine, number = pair
        model = models[number]
        return short[number], -priority(engine, asked), _format_rank(engine, model), _usual_rank(model), number

    pairs = [(engine, number) for engine in engines for number in range(len(models))]
    return [(engine, models[number]) for engine, number in sorted(pairs, key=rank)]


def priority(engine: EngineInfo, hosts: Sequence[HostInfo]) -> int:
    """The engine's priority on the host where it is highest."""
    return max((engine.priority_on(host) for host in hosts), default=engine.priority)


def fits(model: ModelSpec, host: HostInfo, devices: int = 1) -> bool:
    """Whether the weights have room on so many devices of this host, or in its main memory where it has none; True where nobody knows."""
    weights = weights_of(model)
    room = host.device_memory * devices if host.device_kinds else host.memory
    if model.format == "ggufv2":
        room = max(room, host.memory)
    return weights is None or room == 0 or weights <= FREE * room


def weights_of(model: ModelSpec) -> int | None:
    """Bytes of the model's weights: of its files, else by its figures, else by its size; None where nobody knows."""
    if model.weight_bytes is not None:
        return model.weight_bytes
    try:
        if model.architecture_figures is not None:
            return memory.weight_bytes(model.architecture_figures, model.format, model.quantization)
        if model.size_in_billions is not None:
            return int(float(model.size_in_billions) * 1e9 * bits_of(model.format, model.quantization).matrices / 8)
    except (InvalidRequest, ValueError):  # a quantization or a size that says nothing
        pass
    return None


def _as_asked(host: HostInfo, spec: LaunchSpec) -> HostInfo:
    """The host without its devices where the launch wants none."""
    return msgspec.structs.replace(host, device_kinds=(), device_memory=0) if spec.n_gpu in (None, 0) else host


def _format_rank(engine: EngineInfo, model: ModelSpec) -> int:
    order = list(dict.fromkeys([*engine.preferred_formats, *engine.formats]))
    return order.index(model.format) if model.format in order else len(order)


def _usual_rank(model: ModelSpec) -> int:
    name = (model.quantization or "none").lower()
    return USUAL.index(name) if name in USUAL else len(USUAL)
