"""The engine `transformers`: what it offers, without importing torch or transformers. Loaded by the plugin hub in every process."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from xi_core.engine.info import EngineInfo, EngineOptions, HostInfo, ShardRequest, Support
from xi_core.engine.installed import installed
from xi_core.engine.matching import wrong_type
from xi_core.engine.token_manifest import token_manifest
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import Manifest, limited, pooling_manifest
from xi_plugins.engines.transformers import quantized

INSTALL = "pip install 'xi-inference[transformers]'"
INSTALL_QUANTIZATION = "pip install 'xi-inference[transformers-quantization]'"
Quantization = Literal["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8", "torchao-int8-dynamic", "torchao-float8", "torchao-int4"]
SHARDED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures whose models it shards. Their key/value heads, query heads and MLP must divide by the workers."""
FORMATS = ("pytorch", *quantized.FORMATS)
LOGPROBS = 20
"""Most alternatives per token."""


POOLING = {
    "embedding": "xi_plugins.engines.transformers.pooling:TransformersEmbedder",
    "rerank": "xi_plugins.engines.transformers.pooling:TransformersReranker",
}
"""Classes for models that generate no text."""


class TransformersOptions(EngineOptions, kw_only=True, forbid_unknown_fields=True):
    """Options of `xi launch --model-engine transformers`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and cache. `auto`: the checkpoint's own; on a CPU float16 becomes float32."""
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto`: the device that the launch was given, else the CPU."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """How layers are spread where the launch was given several devices: evenly (`auto`, the default, and `balanced`), or filling one after
    the other."""
    quantize: Quantization | None = None
    """Quantize the weights while they are loaded, by the library of that name. Checkpoints that are quantized already need no option."""
    batch_size: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Slots: most requests that run at once. Default: XI_BATCH_SIZE."""
    context_length: Annotated[int, Meta(ge=2)] | None = None
    """Most tokens of prompt and answer together; at most, and by default, what the model was made for."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """CPU threads of torch; by default one per CPU that the process may use, in a container no more than its share."""
    prefill_chunk: Annotated[int, Meta(ge=16, le=65536)] = 512
    """Most prompt tokens per step: a longer prompt is read in chunks between the steps of the requests that already run."""
    enable_prefix_caching: bool = True
    """Prompts that begin as another one did, running or ended, copy its keys and values instead of reading the tokens again."""


def full_manifest(ends: bool = True) -> Manifest:
    """What every model in this engine honours, with or without a chat template; `ends`: whether it has an end token."""
    return token_manifest(INSTALL, ends=ends, logprobs=limited(maximum=LOGPROBS))


def probe(host: HostInfo) -> Support:
    """Whether torch and transformers are installed, by metadata only."""
    return installed("transformers", ("transformers",), (5, 20), INSTALL, below=(6,), beside=("torch",))


OWN_CODE = ("BaichuanForCausalLM", "ChatGLMModel", "JinaBertForMaskedLM", "QWenLMHeadModel")
"""Architectures whose code comes with the weights."""


def priority(host: HostInfo) -> int:
    """Without a GPU behind llama.cpp; with one before it, since llama.cpp is often built for the CPU alone."""
    return 60 if "cuda" in host.device_kinds else 30


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether `spec` is a Hugging Face directory of a language model, an embedding model or a reranker. A reason with a yes is a doubt."""
    if spec.format not in FORMATS:
        return Support(ok=False, reason=f"format {spec.format} is none of {', '.join(FORMATS)}")
    if spec.source.id.lower().endswith(".gguf"):
        return Support(ok=False, reason="a GGUF file; the engine llama.cpp runs those")
    if (wrong := wrong_type(spec, POOLING)) is not None:
        return wrong
    if spec.architecture in OWN_CODE and not spec.remote_code:
        what = f"models of the architecture {spec.architecture} bring Python code of their own"
        return Support(ok=False, reason=f"{what}; to run it, launch with --trust-remote-code, where the operator allows it")
    return quantized.match(spec, host)


def shard(request: ShardRequest) -> Support:
    """Whether it can share a model over workers: by tensor parallelism, with a CPU or one GPU on each."""
    named, options = request.model.architecture, request.options
    if request.model.model_type != "LLM":
        return Support(ok=False, reason=f"it shards models that generate text, not those of type {request.model.model_type}")
    if named is not None and named not in SHARDED:
        return Support(ok=False, reason=f"it shards {', '.join(SHARDED)}; this model is {named}")
    if request.n_gpu > 1:
        return Support(ok=False, reason=f"each of its ranks has one GPU or a CPU; n_gpu is {request.n_gpu}, for each worker: use 1 or none")
    if method := quantized.method_of(request.model):
        return Support(ok=False, reason=f"it shards models that are not quantized; this one is, by {method}")
    for name in ("device_map", "quantize"):
        if options.get(name) is not None:
            return Support(ok=False, reason=f"the option {name} is for models that are not sharded: leave it out")
    return Support(ok=True)


@hookimpl
def xi_engines() -> list[EngineInfo]:
    """The engine `transformers`."""
    return [
        EngineInfo(
            name="transformers",
            engine="xi_plugins.engines.transformers.engine:TransformersEngine",
            formats=FORMATS,
            preferred_formats=("pytorch",),
            engines_by_type=POOLING,
            manifest=Manifest(endpoints={**full_manifest().endpoints, **pooling_manifest("embeddings", "rerank").endpoints}),
            probe=probe,
            match=match,
            requirements=("xi-inference[transformers]",),
            options=TransformersOptions,
            description="Hugging Face models on CPU or GPU, with continuous batching of xi's own.",
            priority=30,
            priority_by_host=priority,
            lora=True,
            pickles=True,
            shard=shard,
        )
    ]
