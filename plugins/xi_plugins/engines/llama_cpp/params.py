"""From options to llama.cpp's `CommonParams`. Called by `engine.py`, which hands in the library, so that this module imports none."""

from __future__ import annotations

from typing import Any

from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.llama_cpp.options import LlamaCppOptions
from xi_plugins.engines.llama_cpp.sizing import Size

_UBATCH = 512
_VERBOSITY = {"debug": 4}
_QUIET = 1
"""llama.cpp's levels (1 errors, 2 warnings, 3 information, 4 all): from its warnings on, it writes several lines per request."""


def common_params(library: Any, plan: LaunchPlan, options: LlamaCppOptions, size: Size, threads: int | None) -> Any:
    """A `CommonParams` for the plan's artifact, without its listener."""
    params = library.CommonParams()
    params.model.path = plan.artifact.path
    params.chat_template = plan.chat_template or ""
    params.use_jinja = True
    params.prefill_assistant = False  # a conversation that ends with the assistant gets a new answer, as in xi's other engines
    params.warmup = options.warmup
    params.check_tensors = options.check_tensors
    params.verbosity = _VERBOSITY.get(plan.log_level.lower(), _QUIET)
    params.ui = params.endpoint_slots = False
    params.load_mode = _load_mode(library, options)
    params.numa = _member(library.ggml_numa_strategy, "GGML_NUMA_STRATEGY", "disabled" if options.numa == "off" else options.numa)
    if threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if options.threads_batch is not None:
        params.cpuparams_batch.n_threads = options.threads_batch
    _set_context(library, params, options, size)
    _set_devices(library, params, plan, options)
    return params


def _set_context(library: Any, params: Any, options: LlamaCppOptions, size: Size) -> None:
    """llama.cpp divides `n_ctx` by the slots and rounds up; `kv_unified_per_slot` is what holds each slot to its context."""
    params.n_parallel = size.slots
    params.n_ctx = size.context_length * size.slots
    params.kv_unified_per_slot = size.context_length
    params.kv_unified = options.kv_unified
    params.cont_batching = True
    params.ctx_shift = False
    params.n_batch = options.batch_size
    params.n_ubatch = options.ubatch_size or min(_UBATCH, options.batch_size)
    params.cache_prompt = options.cache_prompt
    params.cache_ram_mib = 0  # its default may take 8 GiB for prompts of the past
    params.cache_idle_slots = False
    params.swa_full = options.swa_full
    params.cache_type_k = _member(library.ggml_type, "GGML_TYPE", options.cache_type_k)
    params.cache_type_v = _member(library.ggml_type, "GGML_TYPE", options.cache_type_v)
    params.flash_attn_type = _member(library.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE", _flash(options.flash_attention))
    if options.rope_freq_base is not None:
        params.rope_freq_base = options.rope_freq_base
    if options.rope_freq_scale is not None:
        params.rope_freq_scale = options.rope_freq_scale


def _set_devices(library: Any, params: Any, plan: LaunchPlan, options: LlamaCppOptions) -> None:
    """Without devices of its own, a replica stays on the CPU."""
    params.n_gpu_layers = options.n_gpu_layers if options.n_gpu_layers is not None else (-1 if plan.devices else 0)
    params.fit_params = bool(plan.devices) and options.n_gpu_layers is None
    params.main_gpu = options.main_gpu
    params.split_mode = _member(library.llama_split_mode, "LLAMA_SPLIT_MODE", options.split_mode)
    params.no_kv_offload = not options.kv_offload
    if options.tensor_split:
        shares = list(params.tensor_split)
        shares[: len(options.tensor_split)] = options.tensor_split
        params.tensor_split = shares


def _load_mode(library: Any, options: LlamaCppOptions) -> Any:
    if options.mmap is None and not options.mlock:
        return library.llama_load_mode.LLAMA_LOAD_MODE_AUTO
    mmap = options.mmap is not False
    names = {(True, True): "mmap_mlock", (True, False): "mmap", (False, True): "mlock", (False, False): "none"}
    return _member(library.llama_load_mode, "LLAMA_LOAD_MODE", names[mmap, options.mlock])


def _flash(wanted: str | bool) -> str:
    return {"auto": "auto", "on": "enabled", "off": "disabled", True: "enabled", False: "disabled"}[wanted]


def _member(kind: Any, prefix: str, name: str) -> Any:
    """The member of a llama.cpp enumeration by the short, lower-case name that options use."""
    return getattr(kind, f"{prefix}_{name.upper()}")
