"""Which environment variables a launch may set for its replicas. Checked by the supervisor before anything is placed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from xi_core.config import Settings
from xi_core.errors import ConfigError, InvalidRequest

REFUSED_PREFIXES = ("LD_", "DYLD_", "PYTHON", "XI_")
REFUSED_ENDINGS = ("_PROXY",)
REFUSED_NAMES = ("PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
ALLOWED_PREFIXES = (
    "VLLM_", "SGLANG_", "HF_", "NCCL_", "GLOO_", "OMP_", "MKL_", "CUDA_", "TORCH_", "PYTORCH_", "TRANSFORMERS_", "TOKENIZERS_",
    "GGML_", "LLAMA_", "MLX_",
)  # fmt: skip
"""Those of engines and their libraries: all that a launch may set where other machines reach the server. `XI_ENV_ALLOW` adds to them."""
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def allowed_prefixes(config: Settings) -> tuple[str, ...]:
    """What names may begin with where other machines reach the server. Raises `ConfigError` for what begins no name."""
    own = [part.strip() for part in config.env_allow.split(",") if part.strip()]
    for part in own:
        if not _IDENTIFIER.fullmatch(part):
            raise ConfigError(f"XI_ENV_ALLOW: {part!r} is no beginning of a variable's name; write A_,B_", param="XI_ENV_ALLOW")
    return (*ALLOWED_PREFIXES, *own)


def check_env(env: Mapping[str, str], allowed: tuple[str, ...] | None = None) -> None:
    """Raises `InvalidRequest` for the first variable that a launch may not set, and says why.

    `allowed`: what names may begin with; None where only this machine reaches the server, and any name will do that isn't refused.
    """
    for name, value in env.items():
        reason = _refusal(name, value) or _not_allowed(name, value, allowed)
        if reason:
            raise InvalidRequest(f"environment variable {name!r} is refused: {reason}", param="env")


def _refusal(name: str, value: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        return "its name is not an identifier (letters, digits and _)"
    upper = name.upper()
    if upper.startswith(REFUSED_PREFIXES) or upper.endswith(REFUSED_ENDINGS) or upper in REFUSED_NAMES:
        return "it could change which code runs, where its data goes, or what xi itself sets"
    if any(sign in value for sign in "\0\n\r"):
        return "its value has a line break or NUL in it"
    return ""


def _not_allowed(name: str, value: str, allowed: tuple[str, ...] | None) -> str:
    if allowed is None:
        return ""
    if name.startswith(allowed):
        # Engines' libraries load plugins, logging set-ups and whole libraries from files that such variables name, and the file may be
        # one of a model that was downloaded.
        if "/" not in value or name.startswith(tuple(set(allowed) - set(ALLOWED_PREFIXES))):
            return ""
        return (
            "other machines reach this server, so that no launch names files or addresses (a value with a /); "
            f"its operator can allow this variable (XI_ENV_ALLOW={name})"
        )
    return (
        f"other machines reach this server, so that launches set names only that begin with {', '.join(allowed)}; "
        "its operator can add to them (XI_ENV_ALLOW)"
    )
