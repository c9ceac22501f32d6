"""Which of a spec's sources its files come from."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from xi_core.api.control import LaunchSpec
from xi_core.errors import UnknownModel
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.hub_id import is_hub_id


def from_source(found: Iterable[ModelSpec], spec: LaunchSpec, default: str) -> list[ModelSpec]:
    """The specs with the source that `spec` asks for first; where it asks for none, with `default` if they are there, else their own.

    Raises `UnknownModel` where none is at the source that is asked for.
    """
    models = list(found)
    if spec.source is None:
        return [_at(model, _ref(model, default) or model.source) for model in models]
    there = [(model, ref) for model in models if (ref := _ref(model, spec.source)) is not None]
    if there:
        return [_at(model, ref) for model, ref in there]
    if is_hub_id(spec.model_name) and not spec.model_path:  # an id and a source: there it is, or the source will say that it isn't
        return [_at(model, SourceRef(source=spec.source, id=spec.model_name, files=model.source.files)) for model in models]
    known = sorted({ref.source for model in models for ref in _refs(model)})
    raise UnknownModel(f"model '{spec.model_name}' is not known at source '{spec.source}'; it is at: {', '.join(known)}", param="source")


def _refs(model: ModelSpec) -> tuple[SourceRef, ...]:
    return (model.source, *model.mirrors)


def _ref(model: ModelSpec, source: str) -> SourceRef | None:
    return next((ref for ref in _refs(model) if ref.source == source), None)


def _at(model: ModelSpec, ref: SourceRef) -> ModelSpec:
    others = tuple(one for one in _refs(model) if one != ref)
    return msgspec.structs.replace(model, source=ref, mirrors=others)
