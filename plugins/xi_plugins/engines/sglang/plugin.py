"""Plugin of the engine `SGLang`: what it is and whether it can run here. Imports nothing of SGLang."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from typing import Any

from xi_core.engine.child_options import normalised, refuse
from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import COMMON_FIELDS, YES, limited, no, of_fields

NAME = "SGLang"
PACKAGE = "sglang"
INSTALL = "pip install 'xi-inference[sglang]'"
FORMATS = ("pytorch", "gptq", "awq", "fp8")
OLDEST = (0, 5)

_SEED = limited(reason="only with --enable-deterministic-inference")
_COMMON = dict.fromkeys(COMMON_FIELDS, YES) | {"seed": _SEED}

MANIFEST = of_fields(
    chat=_COMMON | {"tools": YES, "tool_choice": YES, "chat_template_kwargs": YES},
    completions=_COMMON | {"echo": no("SGLang is not asked for the prompt's text")},
)
"""What a model with a chat template, a tool parser and deterministic inference honours."""

ALIASES = {
    **dict.fromkeys(("tp", "tp_size"), "tensor_parallel_size"),
    **dict.fromkeys(("pp", "pp_size"), "pipeline_parallel_size"),
    **dict.fromkeys(("dp", "dp_size"), "data_parallel_size"),
    "max_model_len": "context_length",
    **dict.fromkeys(("max_num_seqs", "slots"), "max_running_requests"),
}
"""SGLang's short names, and the names of the same options in xi's other engines."""

_OURS = "xi connects to SGLang's server itself"
RESERVED = {
    **dict.fromkeys(("host", "port", "api_key", "admin_api_key", "grpc_mode", "smg_grpc_mode", "config"), _OURS),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"), "xi serves HTTP itself"),
    **dict.fromkeys(("model", "model_path"), "it is the model that is launched (xi launch MODEL)"),
    "served_model_name": "it is the launch's uid (--model-uid)",
}


class SglangInfo(EngineInfo, kw_only=True):
    """An `EngineInfo` that leaves options to SGLang's own parser, but for those that are xi's."""

    def check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """`options` in SGLang's names. Raises `UnknownOption` for one that xi sets itself, or that is given twice."""
        found = normalised(options, ALIASES)
        refuse(self.name, found, RESERVED)
        return found


def probe(host: HostInfo) -> Support:
    """Whether SGLang is installed, by metadata only; its version when it is."""
    if host.system.lower() != "linux":
        return Support(ok=False, reason=f"SGLang runs on Linux, and this is {host.system}")
    if importlib.util.find_spec(PACKAGE) is None:
        return Support(ok=False, reason=f"{PACKAGE} is not installed; install it with: {INSTALL}")
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return Support(ok=False, reason=f"{PACKAGE} can be imported but is not properly installed; install it again: {INSTALL}")
    parts = found.split(".")
    if all(part.isdigit() for part in parts[:2]) and tuple(int(part) for part in parts[:2]) < OLDEST:
        return Support(ok=False, reason=f"{PACKAGE} {found} is installed, {'.'.join(map(str, OLDEST))} or later is needed: {INSTALL}")
    return Support(ok=True, reason=f"{PACKAGE} {found}")


def match(spec: ModelSpec, host: HostInfo) -> Support:
    """Whether `spec` is a Hugging Face directory of a language model."""
    if spec.format not in FORMATS:
        return Support(ok=False, reason=f"SGLang runs {', '.join(FORMATS)}, not format {spec.format}")
    if spec.model_type != "LLM":
        return Support(ok=False, reason=f"this engine serves language models (LLM), not {spec.model_type}")
    return Support(ok=True)


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    """The engine `SGLang`."""
    return [
        SglangInfo(
            name=NAME,
            aliases=("sglang", "SGLANG"),
            engine="xi_plugins.engines.sglang.engine:SglangEngine",
            formats=FORMATS,
            manifest=MANIFEST,
            probe=probe,
            match=match,
            requirements=("xi-inference[sglang]",),
            own_parsers=True,
            description="Hugging Face models by SGLang's own server. Not verified on a GPU yet.",
            priority=20,
        )
    ]
