"""How long a context and how many slots a model gets, and whether they fit in memory. Pure; called by both engines at load."""

from __future__ import annotations

from msgspec import Struct

from xi_core.errors import EngineError, UnknownOption
from xi_plugins.engines.llama_cpp.gguf import Header
from xi_plugins.engines.llama_cpp.options import BindingOptions

DEFAULT_CONTEXT = 8192
_CACHE_SHARE = 0.25
"""Part of the memory that the cache may take when `slots` is not given."""
_SMALL_MODEL = 16 * 1024 * 1024
_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 1.0625,
    "q5_1": 0.75,
    "q5_0": 0.6875,
    "q4_1": 0.625,
    "q4_0": 0.5625,
    "iq4_nl": 0.5625,
}
"""Bytes per cache value."""
_GIB = 1024**3


class Size(Struct, kw_only=True, frozen=True):
    """Tokens of context for each slot, and the number of slots."""

    context_length: int
    slots: int


def room(header: Header, options: BindingOptions, on_devices: int, in_main: int) -> int:
    """Bytes that weights and cache may take in all, of which so much is free on the devices, 0 without any, and in main memory.

    Layers that the options leave in main memory, with their part of the cache, take nothing of the devices.
    """
    layers = options.n_gpu_layers
    if not on_devices:
        return in_main
    if layers is None or not 0 <= layers < header.layers:
        return on_devices
    share = layers / header.layers
    rest = int(in_main / (1 - share))
    return min(rest, int(on_devices / share)) if share else rest


def size_for(header: Header, options: BindingOptions, memory: int, most: int, *, on_devices: bool = False) -> Size:
    """Context and slots within `memory` bytes; at most `most` slots unless the options name a number. `on_devices`: it is theirs.

    Raises `UnknownOption` for too long a context, `EngineError` for too little memory.
    """
    trained = header.context_length or DEFAULT_CONTEXT
    context = options.context_length or min(trained, DEFAULT_CONTEXT)
    if context > trained:
        raise UnknownOption(f"context_length {context} is more than this model's {trained}", param="context_length")
    per_slot = max(1.0, context * header.kv_values * (_BYTES[options.cache_type_k] + _BYTES[options.cache_type_v]) / 2)
    slots = options.slots or max(1, min(most, int(memory * _CACHE_SHARE / per_slot)))
    needed = header.size + slots * per_slot
    if needed > memory:
        other = ", or leave layers in main memory with n_gpu_layers" if on_devices else ""
        raise EngineError(
            f"the model needs about {needed / _GIB:.1f} GiB with a context_length of {context} and {slots} slots, and there are "
            f"{memory / _GIB:.1f} GiB; choose fewer slots, a shorter context_length, a quantized cache_type_k or a smaller quantization"
            + other
        )
    return Size(context_length=context, slots=slots)


def threads_for(header: Header, options: BindingOptions, fewer: int | None) -> int | None:
    """CPU threads for decoding; None leaves it to llama.cpp. Threads cost more than they bring where a step takes microseconds.

    `fewer`: processors that the process may use, where llama.cpp would take more.
    """
    return options.threads or (1 if header.size < _SMALL_MODEL else fewer)
