"""Which spec a download without a launch means. Used by `xi pull` and the supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xi_core.api.control import LaunchSpec
from xi_core.api.pulls import PullOrder
from xi_core.errors import InvalidRequest
from xi_core.models.catalog import find_family, looks_like_path, normalised
from xi_core.models.family import ModelFamily, ModelSpec
from xi_core.models.hub_id import is_hub_id

MOST_SHOWN = 40


def as_launch(order: PullOrder, families: Iterable[ModelFamily]) -> LaunchSpec:
    """A launch that would need the same files, normalised. Raises `InvalidRequest` for a path, of which there is nothing to download."""
    name = order.model_name
    if looks_like_path(name) and not is_hub_id(name) and find_family(name, families) is None:
        raise InvalidRequest(
            f"'{name}' is a path: there is nothing to download. Give a family's name or a hub id (owner/name)", param="model_name"
        )
    size = order.size_in_billions
    spec = LaunchSpec(
        model_name=name,
        model_type=order.model_type,
        model_format=order.model_format,
        size_in_billions=f"{size:g}" if isinstance(size, float) else size,
        quantization=order.quantization,
        source=order.source or None,
        trust_remote_code=order.trust_remote_code,
    )
    return normalised(spec)


def only_one(name: str, found: Sequence[ModelSpec]) -> ModelSpec:
    """The spec that is meant. Raises `InvalidRequest` where there are several of other files, listing them."""
    if len({(one.source.id, one.source.files) for one in found}) > 1:
        shown = "\n  ".join(
            f"-s {one.size_in_billions or '?'} -f {one.format} -q {one.quantization or 'none'}   {one.source.id}"
            for one in found[:MOST_SHOWN]
        )
        raise InvalidRequest(f"'{name}' comes in several kinds; say which:\n  {shown}", param="model_name")
    return found[0]
