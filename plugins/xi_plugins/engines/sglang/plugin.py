"""Plugin of the engine `SGLang`: what it is and whether it can run here. Imports nothing of SGLang."""

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
from xi_core.serving.server_calls import HERMES, LLAMA3
from xi_core.wire.manifest import COMMON_FIELDS, STRUCTURED_FIELDS, YES, Manifest, limited, no, of_fields, pooling_manifest

NAME = "SGLang"
PACKAGE = "sglang"
INSTALL = "pip install 'xi-inference[sglang]'"
FORMATS = ("pytorch", "gptq", "awq", "fp8")
OLDEST = (0, 5)

_SEED = limited(reason="only with --enable-deterministic-inference")
_REPETITION = no("SGLang takes no more than 2, and weighs it before logit_bias where xi's other engines do so after")

CALL_FORMS = {**dict.fromkeys(("qwen", "qwen25", "hermes"), HERMES), "llama3": LLAMA3}
"""SGLang's parsers of tool calls of which xi knows the form, so that it can force calls.

Its `pythonic` drops calls with numbers below zero, and with JSON's true and null.
"""
UNKNOWN_FORM = f"calls can be required with --tool-call-parser {', '.join(CALL_FORMS)}; xi doesn't know the form of others"
_CHOICE = limited(reason=UNKNOWN_FORM)
_NO_IDS = no("SGLang does not tell them in streams of chats")
_COMMON = dict.fromkeys((*COMMON_FIELDS, *STRUCTURED_FIELDS), YES) | {
    "repetition_penalty": _REPETITION,
    "seed": _SEED,
    "return_token_ids": _NO_IDS,
}

MANIFEST = of_fields(
    chat=_COMMON | dict.fromkeys(("tools", "chat_template_kwargs"), YES) | {"tool_choice": _CHOICE, "parallel_tool_calls": YES},
    completions=_COMMON | {"echo": no("SGLang is not asked for the prompt's text")},
)
"""What a model with a chat template, a tool parser and deterministic inference honours."""

POOLING = {"embedding": "xi_plugins.engines.sglang.pooling:SglangEmbedder"}
"""Classes for models that generate no text."""

ALIASES = {
    **dict.fromkeys(("tp", "tp_size"), "tensor_parallel_size"),
    **dict.fromkeys(("pp", "pp_size"), "pipeline_parallel_size"),
    **dict.fromkeys(("dp", "dp_size"), "data_parallel_size"),
    "max_model_len": "context_length",
    **dict.fromkeys(("max_num_seqs", "slots"), "max_running_requests"),
}
"""SGLang's short names, and the names of the same options in xi's other engines."""

MEMORY_SHARE = 0.9
"""Part of a GPU's memory that SGLang takes where the launch doesn't say: what its own reckoning of `mem_fraction_static` comes to on large
GPUs, with what it computes in besides."""

_OURS = "xi connects to SGLang's server itself"
RUNS_CODE = ("custom_weight_loader", "forward_hooks", "enable_custom_logit_processor")
"""Options that name Python code to import, or let requests bring some."""
RESERVED = {
    **dict.fromkeys(RUNS_CODE, "it lets code run that a launch or a request brings"),
    **dict.fromkeys(("host", "port", "api_key", "admin_api_key", "grpc_mode", "smg_grpc_mode", "config"), _OURS),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"), "xi serves HTTP itself"),
    **dict.fromkeys(("model", "model_path"), "it is the model that is launched (xi launch MODEL)"),
    "served_model_name": "it is the launch's uid (--model-uid)",
    "trust_remote_code": "use --trust-remote-code of the launch, which the operator must allow too (XI_ALLOW_REMOTE_CODE=1)",
    "is_embedding": "it is the launch's model type (-t embedding)",
    **dict.fromkeys(("enable_lora", "lora_paths"), "name each adapter by --lora-modules NAME=DIRECTORY"),
    **dict.fromkeys(("nnodes", "node_rank", "dist_init_addr", "nccl_init_addr", "nccl_port"), "xi joins the workers itself (--n-worker)"),
}
NOT_SHARED = {"data_parallel_size": "over workers it has attention in data parallel only (--attn-dp-size); copies are xi's own (--replica)"}
"""Options that can't be had over several workers, and why."""


class SglangInfo(EngineInfo, kw_only=True):
    """An `EngineInfo` that leaves options to SGLang's own parser, but for those that are xi's."""

    def check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` in SGLang's names. Raises `UnknownOption` for one that xi sets itself, or that is given twice."""
        found = normalised(checked_context(self.name, options), ALIASES)
        refuse(self.name, found, RESERVED)
        return found


def probe(host: HostInfo) -> Support:
    """Whether SGLang is installed, by metadata only; its version when it is."""
    return not_on_linux(NAME, host) or installed(PACKAGE, (PACKAGE,), OLDEST, INSTALL)


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether `spec` is a Hugging Face directory of a language model or of an embedding model."""
    return not_on_linux(NAME, host) or wrong_format(NAME, spec, FORMATS) or wrong_type(spec, POOLING) or Support(ok=True)


def shard(request: ShardRequest) -> Support:
    """Whether SGLang can share a model over workers so: tensor × pipeline parallel must come to their devices, or CPUs, evenly."""
    options, workers = request.options, request.n_worker
    if not options.get("enable_dp_attention") and (wrong := refused(options, NOT_SHARED)) is not None:
        return wrong
    found = shared_by(NAME, request)
    stages = int(options.get("pipeline_parallel_size") or 1) if found.ok else 1
    if stages % workers and workers % stages:
        reason = f"pipeline_parallel_size is {stages}, and n_worker {workers}: SGLang wants one to be a multiple of the other"
        return Support(ok=False, reason=reason)
    return found


def priority(host: HostInfo) -> int:
    """Second choice where there is a GPU; on a CPU behind all others but MLX."""
    return 70 if host.device_kinds else 10


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    """The engine `SGLang`."""
    return [
        SglangInfo(
            name=NAME,
            aliases=("sglang", "SGLANG"),
            engine="xi_plugins.engines.sglang.engine:SglangEngine",
            formats=FORMATS,
            manifest=Manifest(endpoints=MANIFEST.endpoints | pooling_manifest("embeddings").endpoints),
            engines_by_type=POOLING,
            probe=probe,
            match=match,
            requirements=("xi-inference[sglang]",),
            own_parsers=True,
            lora=True,
            shard=shard,
            memory_share=MEMORY_SHARE,
            memory_share_option="mem_fraction_static",
            description="Hugging Face models by SGLang's own server. Tested on a CPU, not verified on a GPU.",
            priority=10,
            priority_by_host=priority,
        )
    ]
