"""The catalog: which model specs a launch spec can mean. The supervisor calls it; files themselves are read by `inspect`, on a worker."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path

import msgspec

from xi_core.api.control import LaunchSpec, model_type_of
from xi_core.errors import InvalidRequest, UnknownModel
from xi_core.models.family import ModelFamily, ModelSpec
from xi_core.models.hub_id import HUB, is_hub_id, spec_of_hub
from xi_core.models.source_choice import from_source

FORMAT_ALIASES = {"gguf": "ggufv2", "safetensors": "pytorch"}
"""Other words that users have for a format."""
LARGEST_EXPONENT = 20


def same_size(text: str) -> str:
    """A size in billions in its one form: `0_5`, `0.5` and `0.50B` are `0.5`; what is no number stays, in lower case."""
    plain = text.strip().lower().removesuffix("b").replace("_", ".")
    try:
        number = Decimal(plain)
    except ArithmeticError:
        return plain
    # What is far from any size, such as 9e999999, stays as short as it is.
    return format(number.normalize(), "f") if number.is_finite() and abs(number.adjusted()) < LARGEST_EXPONENT else plain


def normalised(spec: LaunchSpec) -> LaunchSpec:
    """`spec` with its uid filled in and its filters in their one form, so that two that mean the same are equal.

    Raises `InvalidRequest` where no uid can be made of the name.
    """
    return msgspec.structs.replace(
        spec,
        model_uid=spec.model_uid or default_uid(spec),
        model_type=model_type_of(spec.model_type) or spec.model_type,
        model_format=_format(spec.model_format),
        size_in_billions=same_size(spec.size_in_billions) if spec.size_in_billions else None,
        quantization=spec.quantization or None,
        model_engine=spec.model_engine or None,
        model_path=spec.model_path or None,
        source=spec.source.lower() if spec.source else None,
    )


def default_uid(spec: LaunchSpec) -> str:
    """The uid of a launch that names none: the model's name, or the last part of its hub id, or the stem of its path."""
    name = spec.model_name
    if is_hub_id(name):
        name = name.rpartition("/")[2]
    elif looks_like_path(name):
        path = Path(os.path.expanduser(name.removeprefix("file://")))  # unlike Path's own, it leaves a `~somebody` that isn't known
        name = path.name if _is_directory(path) else path.stem
    uid = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:128]
    if not uid.strip("."):
        raise InvalidRequest(f"no uid can be made of the model name '{spec.model_name}'; give one (model_uid)", param="model_uid")
    return uid


def looks_like_path(name: str) -> bool:
    """Whether a model name is meant as a directory or file: by its form, or because a directory of this name is there."""
    return "/" in name or name.startswith("~") or name.lower().endswith(".gguf") or name in (".", "..") or _is_directory(Path(name))


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or a place that may not be looked at: inspection says so
        return False


def path_of(spec: LaunchSpec, families: Iterable[ModelFamily]) -> str | None:
    """The path that a worker has to inspect for this launch; None where the family's own sources are meant."""
    if spec.model_path:
        return spec.model_path
    family = find_family(spec.model_name, families)
    if family is not None:
        return family.path
    return spec.model_name if looks_like_path(spec.model_name) and not is_hub_id(spec.model_name) else None


def find_family(name: str, families: Iterable[ModelFamily]) -> ModelFamily | None:
    """The family of this name or alias, in any case."""
    wanted = name.lower()
    return next((f for f in families if wanted == f.name.lower() or wanted in (alias.lower() for alias in f.aliases)), None)


def candidates(
    spec: LaunchSpec, families: Iterable[ModelFamily], inspected: ModelSpec | None = None, default_source: str = HUB
) -> list[ModelSpec]:
    """The model specs that `spec` can mean, never none; `inspected` is what its path holds, where it has one (`path_of`).

    Each has the source that `spec` asks for, else `default_source` where it is there too.

    Raises `UnknownModel` for a name that nothing has, and for filters that leave nothing, with the values that exist.
    """
    families = list(families)
    family = find_family(spec.model_name, families)
    if inspected is not None:
        found = [_at_path(family, inspected) if family else inspected]
    elif family is not None:
        found = family.specs
    elif is_hub_id(spec.model_name):
        found = _at_hub(spec.model_name, families) or [_of_id(spec, default_source)]
    else:
        raise UnknownModel(_unknown(spec.model_name, families), param="model_name")
    return from_source(_filtered(spec, found), spec, default_source)


def _of_id(spec: LaunchSpec, default_source: str) -> ModelSpec:
    return spec_of_hub(spec.model_name, spec.model_type, _format(spec.model_format), spec.quantization, spec.source or default_source)


def _at_path(family: ModelFamily, inspected: ModelSpec) -> ModelSpec:
    """The family's spec for files of the user's own: what the files say goes before what the family says."""
    size = inspected.size_in_billions
    own = family.at_path or inspected
    nearest = next((s for s in family.specs if s.format == inspected.format), family.specs[0] if family.specs else own)
    return msgspec.structs.replace(
        nearest,
        name=family.name,
        model_type=nearest.model_type if family.specs else inspected.model_type,
        format=inspected.format,
        source=inspected.source,
        mirrors=(),  # what hubs have are other files than the user's own
        size_in_billions=size,
        quantization=inspected.quantization,
        context_length=inspected.context_length or nearest.context_length,
        architecture=inspected.architecture or nearest.architecture,
        architecture_figures=inspected.architecture_figures,
        weight_bytes=inspected.weight_bytes,
        pickled=inspected.pickled,
        tool_parser=nearest.tool_parser or inspected.tool_parser,
        reasoning_parser=nearest.reasoning_parser or inspected.reasoning_parser,
        abilities=list(dict.fromkeys([*nearest.abilities, *inspected.abilities])),
    )


def _at_hub(hub_id: str, families: Iterable[ModelFamily]) -> list[ModelSpec]:
    """The specs of families that have this hub id, at whatever source."""
    wanted = hub_id.lower()
    return [s for family in families for s in family.specs if any(ref.id.lower() == wanted for ref in (s.source, *s.mirrors))]


def _filtered(spec: LaunchSpec, found: list[ModelSpec]) -> list[ModelSpec]:
    filters: list[tuple[str, str | None, Callable[[ModelSpec], str]]] = [
        ("model_format", _format(spec.model_format), lambda s: s.format.lower()),
        ("size_in_billions", same_size(spec.size_in_billions) if spec.size_in_billions else None, _size_of),
        ("quantization", spec.quantization.lower() if spec.quantization else None, lambda s: (s.quantization or "none").lower()),
    ]
    for field, wanted, value in filters:
        # A local file often doesn't tell its size: what it can't tell, it can't contradict.
        kept = [s for s in found if wanted is None or value(s) in (wanted, "")]
        if not kept:
            known = ", ".join(dict.fromkeys(value(s) for s in found))
            raise UnknownModel(f"model '{spec.model_name}' has no {field} '{getattr(spec, field)}' here; it has: {known}", param=field)
        found = kept
    return found


def _size_of(spec: ModelSpec) -> str:
    return same_size(spec.size_in_billions) if spec.size_in_billions else ""


def _format(text: str | None) -> str | None:
    return FORMAT_ALIASES.get(text.lower(), text.lower()) if text else None


def _unknown(name: str, families: list[ModelFamily]) -> str:
    names = [f.name for f in families]
    known = ", ".join(sorted(names)) or "none"
    every = {word.lower(): f.name for f in families for word in (f.name, *f.aliases)}
    close = difflib.get_close_matches(name.lower(), every, n=1)
    hint = f"did you mean '{every[close[0]]}'? " if close else ""
    return f"unknown model '{name}'; {hint}known models: {known}; a directory, a .gguf file or a hub id (owner/name) can be given too"
