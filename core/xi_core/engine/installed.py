"""Whether an engine's library is installed, by metadata only: what `EngineInfo.probe` mostly asks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence

from xi_core.engine.info import Support


def version_of(distributions: Sequence[str]) -> str | None:
    """The version of the first of these distributions that is installed; None where none is."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def installed(module: str, distributions: Sequence[str], oldest: tuple[int, int], install: str) -> Support:
    """Whether `module` can be imported, from one of these distributions in a version from `oldest` on; `install` is the line to say."""
    name = distributions[0]
    if importlib.util.find_spec(module) is None:
        return Support(ok=False, reason=f"{name} is not installed; install it with: {install}")
    found = version_of(distributions)
    if found is None:
        return Support(ok=False, reason=f"{name} can be imported but is not properly installed; install it again: {install}")
    parts = found.split(".")[:2]
    if all(part.isdigit() for part in parts) and tuple(map(int, parts)) < oldest:
        return Support(ok=False, reason=f"{name} {found} is installed, {'.'.join(map(str, oldest))} or later is needed: {install}")
    return Support(ok=True, reason=f"{name} {found}")
