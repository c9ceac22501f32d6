"""Packages that a launch may bring into its own environment: names and versions only. Checked by the supervisor and by the worker.

What pip would take beside them (URLs, repositories, paths, files of requirements, options, markers) is refused: it could fetch code from
anywhere, or read this machine's files. Names and versions as PyPA's specification of dependency specifiers has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

from xi_core.api.control import LaunchSpec, has_environment
from xi_core.errors import Forbidden, InvalidRequest

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_VERSION = r"(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9][A-Za-z0-9.*+!_-]*"
_SPEC = re.compile(rf"({_NAME})\s*(\[\s*{_NAME}(?:\s*,\s*{_NAME})*\s*\])?\s*({_VERSION}(?:\s*,\s*{_VERSION})*)?", re.ASCII)
LONGEST = 200
MOST = 100


def check_environment(spec: LaunchSpec, allowed: bool) -> None:
    """Raises `InvalidRequest` for what a launch can't have of an environment of its own, `Forbidden` where this server builds none."""
    check_packages(spec.virtual_env_packages)
    if spec.enable_virtual_env is False and (spec.virtual_env_packages or spec.virtual_env_find_links):
        raise InvalidRequest(
            "virtual_env_packages and virtual_env_find_links are for an environment that enable_virtual_env switches off; leave one out",
            param="enable_virtual_env",
        )
    if spec.virtual_env_find_links and not has_environment(spec):
        raise InvalidRequest(
            "virtual_env_find_links is of no use without virtual_env_packages or enable_virtual_env", param="virtual_env_find_links"
        )
    if has_environment(spec) and not allowed:
        raise Forbidden("this server builds no environments for models (XI_ALLOW_VIRTUAL_ENV=0)", param="enable_virtual_env")


def check_packages(packages: Iterable[str], param: str = "virtual_env_packages") -> None:
    """Raises `InvalidRequest` for the first that is no name with versions."""
    given = list(packages)
    if len(given) > MOST:
        raise InvalidRequest(f"{param}: {len(given)} packages; {MOST} at most", param=param)
    for text in given:
        if len(text) > LONGEST or _SPEC.fullmatch(text) is None:
            raise InvalidRequest(
                f"{param}: {text[:LONGEST]!r} is no package with versions, such as 'xllamacpp==2026.10.1' or 'torch>=2.9,<3'; "
                f"URLs, paths, markers and options aren't taken",
                param=param,
            )


def needed(requirements: Iterable[str]) -> list[str]:
    """What an engine's `requirements` come to where they name an extra of an installed distribution, as the built-in engines' do.

    Read from that distribution's metadata (PEP 508), so that xi itself isn't asked of an index.
    """
    found: list[str] = []
    for text in requirements:
        name, bracket, extra = text.partition("[")
        try:
            own = requires(name) if bracket else None
        except PackageNotFoundError:
            own = None
        if own is None:
            found.append(text)
            continue
        clause = re.compile(rf"(?:\s+and\s+|;\s*)extra == ['\"]{re.escape(extra.rstrip(']'))}['\"]$")
        found += [clause.sub("", line) for line in own if clause.search(line)]
    return found


def package_name(text: str) -> str:
    """The distribution that a spec names, in its one form (PEP 503)."""
    found = _SPEC.match(text)
    return re.sub(r"[-_.]+", "-", found[1]).lower() if found else text


def joined(*groups: Iterable[str]) -> list[str]:
    """All packages; of those named in several groups the last group's word holds."""
    found: dict[str, list[str]] = {}
    for group in groups:
        fresh: dict[str, list[str]] = {}
        for text in group:
            fresh.setdefault(package_name(text), []).append(text)
        found |= fresh
    return sorted(text for texts in found.values() for text in texts)
