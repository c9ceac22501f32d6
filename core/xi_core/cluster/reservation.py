"""How much of each device's memory placement keeps for a launch's replicas, and of main memory asks for. Called by `resolve`."""

from __future__ import annotations

import math
from typing import Any

from xi_core.api.control import LaunchSpec
from xi_core.engine.info import EngineInfo
from xi_core.errors import InvalidRequest
from xi_core.models import memory
from xi_core.models.family import ModelSpec
from xi_core.models.weight_bits import CACHE_BITS

CONTEXT = 8192
"""Tokens that a sequence's cache is reckoned with where the launch names no `context_length` and the model could have more."""


def reserved(spec: LaunchSpec, model: ModelSpec, engine: EngineInfo, n_gpu: int) -> int:
    """Bytes of each device: weights, the cache of one sequence for each slot that the options name, what computing takes, overhead.

    0 on CPU, and where neither the files nor the family tell enough. An engine that takes a share of the device whatever the model is
    reckoned with its weights alone: the share itself is the greater part, or the model can't fit in it.
    """
    if n_gpu == 0:
        return 0
    devices = n_gpu * spec.n_worker
    figures, weights = model.architecture_figures, _weights(model, spec.options.get("quantize"))
    if weights is None:
        return 0
    if engine.memory_share or engine.memory_share_option:
        return math.ceil(weights / devices)
    if figures is None:
        return math.ceil(weights / devices) + memory.OVERHEAD
    options = spec.options
    each = memory.estimate(
        figures,
        weights,
        _whole(options, "context_length") or min(model.context_length or figures.context or CONTEXT, CONTEXT),
        sequences=_whole(options, "slots") or _whole(options, "batch_size") or 1,
        cache_bits=CACHE_BITS.get(str(options.get("cache_type_k", "auto")), 16.0),
        sharding=memory.Sharding(pipeline=min(devices, figures.layers)),
        cached=model.model_type == "LLM",
    )
    return each.total - math.floor((each.weights + each.cache) * _left_in_main_memory(options, figures.layers))


def of_main_memory(spec: LaunchSpec, model: ModelSpec) -> int:
    """Bytes of weights for each of its workers, should it run without devices: what no engine can do without. 0 where nobody knows."""
    if spec.options.get("quantize"):  # the files' weights are not those that stay
        return 0
    return math.ceil((_weights(model) or 0) / spec.n_worker)


def _weights(model: ModelSpec, quantize: object = None) -> int | None:
    """Bytes of the files themselves, else reckoned from the figures; None where nobody knows.

    `quantize`: into what they are quantized while they are loaded; then the figures alone tell what stays of them.
    """
    if model.weight_bytes is not None and not quantize:
        return model.weight_bytes
    if model.architecture_figures is None:
        return None
    try:
        if quantize:
            return memory.weight_bytes(model.architecture_figures, "pytorch", str(quantize))
        return memory.weight_bytes(model.architecture_figures, model.format, model.quantization)
    except InvalidRequest:  # a quantization of which nobody knows the size: that is no reason to refuse the launch
        return None


def _left_in_main_memory(options: dict[str, Any], layers: int) -> float:
    """The part of the layers that the options don't put on devices."""
    on_devices = options.get("n_gpu_layers")
    if not isinstance(on_devices, int) or isinstance(on_devices, bool) or not 0 <= on_devices < layers:
        return 0.0
    return 1 - on_devices / layers


def _whole(options: dict[str, Any], name: str) -> int:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
