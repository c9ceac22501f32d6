"""The engine `mlx`: what it offers, without importing mlx or mlx-lm. Loaded by the plugin hub in every process."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from xi_core.engine.info import EngineInfo, EngineOptions, HostInfo, ShardRequest, Support
from xi_core.engine.installed import installed
from xi_core.engine.token_manifest import token_manifest
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import Manifest, limited

INSTALL = "pip install 'xi-inference[mlx]'"
PIPELINED = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM")
"""Architectures that mlx-lm can cut between layers. DeepSeek R1 is a DeepseekV3ForCausalLM, Qwen 2.5 a Qwen2ForCausalLM."""
SHARDED = (*PIPELINED, "GptOssForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM")
"""Architectures whose layers mlx-lm can cut."""
LOGPROBS = 20
"""Most alternatives per token."""
OLDEST = (0, 32)
"""Of mlx-lm. Its BatchGenerator changes between versions; no older one was tried."""


class MlxOptions(EngineOptions, kw_only=True, forbid_unknown_fields=True):
    """Options of `xi launch --model-engine mlx`."""

    batch_size: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Slots: most requests that run at once. Default: XI_BATCH_SIZE."""
    context_length: Annotated[int, Meta(ge=2)] | None = None
    """Most tokens of prompt and answer together; at most, and by default, what the model was made for."""
    prefill_chunk: Annotated[int, Meta(ge=16, le=65536)] = 512
    """Most tokens per step of each new prompt: a longer one is read in chunks between the steps of the requests that already run."""
    prefill_batch: Annotated[int, Meta(ge=1, le=1024)] = 8
    """Most prompts that are read at once."""
    pipeline: bool = False
    """With n_worker above 1: cut the model between layers, for slow networks, instead of cutting each layer."""


def full_manifest(ends: bool = True) -> Manifest:
    """What every model in this engine honours, with or without a chat template; `ends`: whether it has an end token."""
    return token_manifest(INSTALL, ends=ends, logprobs=limited(maximum=LOGPROBS))


def probe(host: HostInfo) -> Support:
    """Whether mlx and mlx-lm are installed, by metadata only."""
    return installed("mlx_lm", ("mlx-lm",), OLDEST, INSTALL, beside=("mlx",))


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether `spec` is a language model in MLX's form, or a Hugging Face directory that mlx-lm may read."""
    if spec.format not in ("mlx", "pytorch"):
        return Support(ok=False, reason=f"format {spec.format} is not mlx or pytorch")
    if spec.source.id.lower().endswith(".gguf"):
        return Support(ok=False, reason="a GGUF file; the engine llama.cpp runs those")
    if spec.model_type != "LLM":
        return Support(ok=False, reason=f"model type {spec.model_type} is not LLM")
    return Support(ok=True)


def shard(request: ShardRequest) -> Support:
    """Whether it can share a model over workers, on MLX's ring."""
    named, pipeline = request.model.architecture, request.options.get("pipeline", False)
    if request.n_gpu > 1:
        return Support(ok=False, reason=f"each of its ranks has one device; n_gpu is {request.n_gpu}, for each worker: use 1 or none")
    known = PIPELINED if pipeline else SHARDED
    if named is not None and named not in known:
        how = "between layers" if pipeline else "within layers"
        return Support(ok=False, reason=f"mlx-lm cuts {', '.join(known)} {how}; this model is {named}")
    return Support(ok=True)


def priority(host: HostInfo) -> int:
    """First choice on Apple silicon, which MLX is made for; elsewhere the last of the built-in engines."""
    return 60 if (host.system.lower(), host.machine) == ("darwin", "arm64") else 5


@hookimpl
def xi_engines() -> list[EngineInfo]:
    """The engine `mlx`."""
    return [
        EngineInfo(
            name="mlx",
            engine="xi_plugins.engines.mlx.engine:MlxEngine",
            formats=("mlx", "pytorch"),
            preferred_formats=("mlx", "pytorch"),
            manifest=full_manifest(),
            probe=probe,
            match=match,
            requirements=("xi-inference[mlx]",),
            options=MlxOptions,
            shard=shard,
            description="MLX models and Hugging Face directories on Apple silicon, or on a CPU, by mlx-lm's batch generator.",
            priority=5,
            priority_by_host=priority,
        )
    ]
