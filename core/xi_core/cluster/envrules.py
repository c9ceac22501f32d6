"""Which environment variables a launch may set for its replicas. Checked by the supervisor before anything is placed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from xi_core.errors import InvalidRequest

REFUSED_PREFIXES = ("LD_", "DYLD_", "PYTHON", "XI_")
REFUSED_ENDINGS = ("_PROXY",)
REFUSED_NAMES = ("PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check_env(env: Mapping[str, str]) -> None:
    """Raises `InvalidRequest` for the first variable that a launch may not set, and says why."""
    for name, value in env.items():
        reason = _refusal(name, value)
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
