"""Plugin of the engine `llama.cpp`: what it is and whether it can run here. Imports no engine library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable

from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import COMMON_FIELDS, YES, Ability, limited, no, of_fields
from xi_plugins.engines.llama_cpp.options import LlamaCppInfo, LlamaCppOptions

PACKAGE = "xllamacpp"
INSTALL = "pip install 'xi-inference[llama-cpp]'"
FORMAT = "ggufv2"

_COUNTS_PROMPT = Ability(reason="tokens of the prompt count as well as those of the answer")
_REPEATS_ALONE = limited(
    reason="a seed repeats when the request runs alone; beside others llama.cpp rounds differently, which may change a draw"
)
_COMMON = dict.fromkeys(COMMON_FIELDS, YES) | {
    "presence_penalty": _COUNTS_PROMPT,
    "frequency_penalty": _COUNTS_PROMPT,
    "seed": _REPEATS_ALONE,
}

MANIFEST = of_fields(
    chat=_COMMON | {"tools": YES, "tool_choice": YES},
    completions=_COMMON | {"echo": no("llama.cpp does not give the prompt back")},
)
"""What a model with a chat template honours."""


def probe(host: HostInfo) -> Support:
    """Whether xllamacpp is installed; its version when it is."""
    if importlib.util.find_spec(PACKAGE) is None:
        return Support(ok=False, reason=f"{PACKAGE} is not installed; install it with: {INSTALL}")
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return Support(ok=False, reason=f"{PACKAGE} can be imported but is not properly installed; install it with: {INSTALL}")
    return Support(ok=True, reason=f"{PACKAGE} {version}")


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether it can run this model: a language model in a GGUF file."""
    if spec.format != FORMAT:
        return Support(ok=False, reason=f"llama.cpp runs GGUF files (format {FORMAT}), not format {spec.format}")
    if spec.model_type != "LLM":
        return Support(ok=False, reason=f"this engine serves language models (LLM), not {spec.model_type}")
    return Support(ok=True)


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    return [
        LlamaCppInfo(
            name="llama.cpp",
            aliases=("llama_cpp", "llamacpp", "llama-cpp", "xllamacpp"),
            engine="xi_plugins.engines.llama_cpp.engine:LlamaCppEngine",
            formats=(FORMAT,),
            manifest=MANIFEST,
            probe=probe,
            match=match,
            requirements=("xi-inference[llama-cpp]",),
            options=LlamaCppOptions,
            description="GGUF models on CPU and GPU, by llama.cpp's own server inside the replica.",
            priority=50,
        )
    ]
