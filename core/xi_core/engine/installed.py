"""Whether an engine's library is installed, by metadata only: what `EngineInfo.probe` mostly asks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
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


def installed(
    module: str,
    distributions: Sequence[str],
    oldest: tuple[int, ...],
    install: str,
    *,
    below: tuple[int, ...] | None = None,
    beside: Sequence[str] = (),
) -> Support:
    """Whether `module` can be imported, from one of these distributions in a version from `oldest` on; `install` is the line to say.

    `below`: the first version that is too new. `beside`: other modules that it needs, each in a distribution of its name.
    """
    name = distributions[0]
    missing = [*(other for other in beside if not _found(other)), *([] if _found(module) else [name])]
    if missing:
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        return Support(ok=False, reason=f"{' and '.join(missing)} {verb} not installed; install {them} with: {install}")
    found = version_of(distributions)
    if found is None:
        return Support(
            ok=False, reason=f"{name} is not properly installed: {module} is there without its metadata; install it again: {install}"
        )
    numbers = _numbers(found)
    if numbers < oldest or (below is not None and numbers >= below):
        bound = f" (below {_written(below)})" if below is not None else ""
        return Support(ok=False, reason=f"{name} {found} is installed, {_written(oldest)} or later{bound} is needed: {install}")
    return Support(ok=True, reason=f"{name} {found}")


def _found(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _numbers(version: str) -> tuple[int, ...]:
    """The release's numbers: (0, 3, 36) of `0.3.36`, `0.3.36+cu124` and `0.3.36rc1`; none of a version that has none."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _written(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
