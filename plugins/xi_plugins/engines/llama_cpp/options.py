"""Options of llama.cpp through either binding, and the other names that people know them by. Read by `plugin.py` and both engines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from xi_core.engine.info import EngineInfo, EngineOptions
from xi_core.errors import UnknownOption

Positive = Annotated[int, Meta(ge=1)]
Batch = Annotated[int, Meta(ge=32, le=65536)]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


class BindingOptions(EngineOptions, kw_only=True):
    """What `xi launch` takes for both bindings. None means: llama.cpp's own choice, or the rule that the field names."""

    context_length: Annotated[int, Meta(ge=16)] | None = None
    """Most tokens of prompt and answer together, for each request. Default: the model's own, at most 8192."""
    slots: Annotated[int, Meta(ge=1, le=256)] | None = None
    """Requests that run at once, each with a context of its own. Default: as many as fit in memory, at most XI_BATCH_SIZE."""
    threads: Positive | None = None
    """CPU threads for decoding. Default: llama.cpp's choice, in a container its share; 1 below 16 MiB, which more only slow down."""
    threads_batch: Positive | None = None
    """CPU threads for prompts. Default: as `threads`."""
    batch_size: Batch = 512
    """Most prompt tokens per step. Running answers wait for a step, and aborts take effect between steps."""
    ubatch_size: Batch | None = None
    """Most tokens that are computed at once. Default: 512, at most `batch_size`."""
    n_gpu_layers: Annotated[int, Meta(ge=-1)] | None = None
    """Layers to put on the devices; the others stay in main memory. Default: all; 0 when the replica has no device."""
    main_gpu: Annotated[int, Meta(ge=0)] = 0
    split_mode: Literal["none", "layer", "row"] = "layer"
    tensor_split: Annotated[list[float], Meta(max_length=16)] | None = None
    """Share of the model for each device."""
    flash_attention: Literal["auto", "on", "off"] | bool = "auto"
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    """Precision of the cache. Quantized values need flash attention."""
    kv_offload: bool = True
    """Keep the cache on the device."""
    cache_prompt: bool = True
    """Reuse what is in the cache of the prompt's beginning. Requests with a seed never do, so that they repeat exactly."""
    swa_full: bool = False
    """Full-size cache for models with sliding-window attention."""
    mmap: bool | None = None
    mlock: bool = False
    check_tensors: bool = False
    """Look for invalid values in the weights while loading."""
    numa: Literal["off", "distribute", "isolate", "numactl"] = "off"
    rope_freq_base: Annotated[float, Meta(gt=0)] | None = None
    rope_freq_scale: Annotated[float, Meta(gt=0)] | None = None
    warmup: bool = True


class LlamaCppOptions(BindingOptions, kw_only=True):
    """Options of the engine `llama.cpp`."""

    kv_unified: bool = False
    """One cache for all slots in place of one per slot."""
    grammars: bool = False
    """Take grammars (GBNF) from requests. Only where all who ask are trusted: a hostile grammar can stall llama.cpp for all of them."""


class LlamaCppPythonOptions(BindingOptions, kw_only=True):
    """Options of the engine `llama-cpp-python`: those of both."""


ALIASES = {
    "n_ctx": "context_length",
    "ctx_size": "context_length",
    "max_model_len": "context_length",
    "n_parallel": "slots",
    "parallel": "slots",
    "n_threads": "threads",
    "n_threads_batch": "threads_batch",
    "n_batch": "batch_size",
    "n_ubatch": "ubatch_size",
    "gpu_layers": "n_gpu_layers",
    "ngl": "n_gpu_layers",
    "flash_attn": "flash_attention",
    "use_mmap": "mmap",
    "use_mlock": "mlock",
    "offload_kqv": "kv_offload",
}
"""Names from llama.cpp, llama-cpp-python and vLLM for the same options."""


class LlamaCppInfo(EngineInfo, kw_only=True):
    """An `EngineInfo` that knows the other names of its options."""

    def check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """As `EngineInfo.check_options`, after every other name was replaced. Raises `UnknownOption` when an option is given twice."""
        named: dict[str, Any] = {}
        for given, value in options.items():
            name = given.replace("-", "_")
            name = ALIASES.get(name, name)
            if name in named and named[name] != value:
                raise UnknownOption(f"option '{name}' of engine {self.name} is given twice, as {named[name]!r} and {value!r}", param=name)
            named[name] = value
        return EngineInfo.check_options(self, named)
