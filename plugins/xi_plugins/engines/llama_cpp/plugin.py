"""Plugin of the engine `llama.cpp`: what it is and whether it can run here. Imports no engine library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable

from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import COMMON_FIELDS, YES, Ability, Manifest, limited, no, of_fields, pooling_manifest
from xi_plugins.engines.llama_cpp.options import LlamaCppInfo, LlamaCppOptions

PACKAGE = "xllamacpp"
INSTALL = "pip install 'xi-inference[llama-cpp]'"
FORMAT = "ggufv2"

_COUNTS_PROMPT = Ability(reason="tokens of the prompt count as well as those of the answer")
_REPEATS_ALONE = limited(
    reason="a seed repeats when the request runs alone; beside others llama.cpp rounds differently, which may change a draw"
)
_SCHEMAS = "JSON schemas without pattern, oneOf and bounds of the type number"
_STRUCTURED = f"{_SCHEMAS}; regex: characters, classes, groups, '|' and repetitions; grammar: only with the option 'grammars'"
_COMMON = dict.fromkeys(COMMON_FIELDS, YES) | {
    "presence_penalty": _COUNTS_PROMPT,
    "frequency_penalty": _COUNTS_PROMPT,
    "seed": _REPEATS_ALONE,
    "response_format": limited(reason=_SCHEMAS),
    "structured_outputs": limited("json", "regex", "choice", "grammar", reason=_STRUCTURED),
}

MANIFEST = of_fields(
    chat=_COMMON | {"tools": YES, "tool_choice": YES, "chat_template_kwargs": YES},
    completions=_COMMON | {"echo": no("llama.cpp does not give the prompt back")},
)
"""What a model with a chat template honours."""
POOLING = {
    "embedding": "xi_plugins.engines.llama_cpp.pooling:LlamaCppEmbedder",
    "rerank": "xi_plugins.engines.llama_cpp.pooling:LlamaCppReranker",
}
"""Classes for models that generate no text."""
WITHOUT_GRAMMARS = limited("json", "regex", "choice", reason=_STRUCTURED)
"""`structured_outputs` of a launch without the option `grammars`."""


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
    """Whether it can run this model: a language model, an embedding model or a reranker in a GGUF file."""
    if spec.format != FORMAT:
        return Support(ok=False, reason=f"llama.cpp runs GGUF files (format {FORMAT}), not format {spec.format}")
    if spec.model_type not in ("LLM", *POOLING):
        return Support(ok=False, reason=f"this engine serves models of the types LLM, {', '.join(POOLING)}, not {spec.model_type}")
    return Support(ok=True)


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    return [
        LlamaCppInfo(
            name="llama.cpp",
            aliases=("llama_cpp", "llamacpp", "llama-cpp", "xllamacpp"),
            engine="xi_plugins.engines.llama_cpp.engine:LlamaCppEngine",
            formats=(FORMAT,),
            engines_by_type=POOLING,
            manifest=Manifest(endpoints={**MANIFEST.endpoints, **pooling_manifest("embeddings", "rerank").endpoints}),
            probe=probe,
            match=match,
            requirements=("xi-inference[llama-cpp]",),
            options=LlamaCppOptions,
            own_parsers=True,
            description="GGUF models on CPU and GPU, by llama.cpp's own server inside the replica.",
            priority=50,
        )
    ]
