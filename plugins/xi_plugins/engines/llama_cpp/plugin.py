"""Plugin of the engines `llama.cpp` and `llama-cpp-python`, the two bindings of llama.cpp: what they are and whether they can run here.
Imports no engine library."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.engine.installed import installed
from xi_core.engine.token_manifest import token_manifest
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import COMMON_FIELDS, YES, Ability, Manifest, limited, no, of_fields, pooling_manifest
from xi_plugins.engines.llama_cpp.options import LlamaCppInfo, LlamaCppOptions, LlamaCppPythonOptions

PACKAGE = "xllamacpp"
INSTALL = "pip install 'xi-inference[llama-cpp]'"
FORMAT = "ggufv2"
PYTHON_MODULE = "llama_cpp"
PYTHON_PACKAGE = "llama-cpp-python"
PYTHON_INSTALL = "pip install 'xi-inference[llama-cpp-python]'"
PYTHON_OLDEST = (0, 3, 36)
"""Of llama-cpp-python, whose structures must be those of its llama.cpp; no older one was tried."""

_COUNTS_PROMPT = Ability(reason="tokens of the prompt count as well as those of the answer")
_REPEATS_ALONE = limited(
    reason="a seed repeats when the request runs alone; beside others llama.cpp rounds differently, which may change a draw"
)
_SCHEMAS = "JSON schemas without lengths beside a pattern, and with oneOf only of schemas that have no value in common"
_STRUCTURED = (
    f"{_SCHEMAS}; regex: characters, classes, groups, '|' and repetitions, where no text can be read in very many ways; "
    "grammar: only with the option 'grammars'"
)
_CALLS = Ability(
    reason="text may stand before a required call, and its arguments fit the tool's schema but for pattern, oneOf and bounds of numbers, "
    "which are refused where the tool is strict"
)
_COMMON = dict.fromkeys(COMMON_FIELDS, YES) | {
    "presence_penalty": _COUNTS_PROMPT,
    "frequency_penalty": _COUNTS_PROMPT,
    "seed": _REPEATS_ALONE,
    "logprobs": Ability(reason="tokens that make one character together are told as one"),
    "return_token_ids": no("its server tells no ids of tokens that end within a character, so that some would be missing"),
    "response_format": limited(reason=_SCHEMAS),
    "structured_outputs": limited("json", "regex", "choice", "grammar", reason=_STRUCTURED),
}

MANIFEST = of_fields(
    chat=_COMMON | {"tools": YES, "tool_choice": _CALLS, "parallel_tool_calls": YES, "chat_template_kwargs": YES},
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
LOGPROBS = 20
"""Most alternatives per token, of llama-cpp-python."""


def python_manifest(ends: bool = True) -> Manifest:
    """What every model honours in llama-cpp-python, with or without a chat template; `ends`: whether it has an end token."""
    return token_manifest(PYTHON_INSTALL, ends=ends, seed=_REPEATS_ALONE, logprobs=limited(maximum=LOGPROBS))


def probe(host: HostInfo) -> Support:
    """Whether xllamacpp is installed; its version when it is."""
    found = installed(PACKAGE, (PACKAGE,), (), INSTALL)
    if not found.ok and probe_python(host).ok:
        other = f"this machine has {PYTHON_PACKAGE}: use --model-engine {PYTHON_PACKAGE}"
        return Support(ok=False, reason=f"{PACKAGE} is not installed; {other}, or: {INSTALL}")
    return found


def probe_python(host: HostInfo) -> Support:
    """Whether llama-cpp-python is installed, by metadata only; its version when it is."""
    return installed(PYTHON_MODULE, (PYTHON_PACKAGE,), PYTHON_OLDEST, PYTHON_INSTALL)


def match_python(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether llama-cpp-python can run this model: a language model in a GGUF file."""
    if spec.format == FORMAT and spec.model_type in POOLING:
        return Support(ok=False, reason=f"{PYTHON_PACKAGE} serves no {spec.model_type} models here; the engine llama.cpp does: {INSTALL}")
    return match(spec, host)


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether it can run this model: a language model, an embedding model or a reranker in a GGUF file."""
    if spec.format != FORMAT:
        return Support(ok=False, reason=f"llama.cpp runs GGUF files (format {FORMAT}), not format {spec.format}")
    if spec.model_type not in ("LLM", *POOLING):
        return Support(ok=False, reason=f"this engine serves models of the types LLM, {', '.join(POOLING)}, not {spec.model_type}")
    return Support(ok=True)


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    """The engine `llama.cpp`, and for those who have it `llama-cpp-python`."""
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
        ),
        LlamaCppInfo(
            name=PYTHON_PACKAGE,
            aliases=(PYTHON_PACKAGE.replace("-", "_"),),
            engine="xi_plugins.engines.llama_cpp.llama_cpp_python.engine:LlamaCppPythonEngine",
            formats=(FORMAT,),
            manifest=python_manifest(),
            probe=probe_python,
            match=match_python,
            requirements=("xi-inference[llama-cpp-python]",),
            options=LlamaCppPythonOptions,
            description="GGUF models on CPU and GPU, by llama-cpp-python's batches, with continuous batching of xi's own.",
            priority=40,
        ),
    ]
