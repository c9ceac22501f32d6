"""Sizes in bytes as people write them: `80GiB`, `24GB`, `512M`. Used by settings, downloads and commands."""

from __future__ import annotations

import re

from xi_core.errors import ConfigError

UNITS = {
    "": 2**30, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def parse_bytes(text: str, param: str) -> int:
    """Bytes. A bare number is GiB; GB and its kin are powers of 1000. Raises `ConfigError`, naming `param`."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or found[2] not in UNITS or not (size := int(float(found[1]) * UNITS[found[2]])):
        raise ConfigError(f"{param}: '{text}' is no size in bytes; write it like 80GiB, 24GB or 80 (GiB)", param=param)
    return size


def in_words(size: float) -> str:
    """Bytes, as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
