"""`VllmEmbedder` and `VllmReranker`: models that give vectors or scores, by vLLM's pooling runner. Imported in the replica only."""

from __future__ import annotations

from typing import Any, ClassVar

from xi_core.engine.base import ApiRequest, LoadedModel
from xi_core.engine.child_address import Address
from xi_core.wire.manifest import pooling_manifest
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.vllm.engine import VllmEngine, slots
from xi_plugins.engines.vllm.sleeping import ability


class _Pooling(VllmEngine):
    """What the two have in common. xi asks for a few inputs at a time; each of them is a sequence of vLLM's batch."""

    kind: ClassVar[str]

    def _options(self, plan: LaunchPlan, address: Address) -> dict[str, Any]:
        return {"runner": "pooling", **super()._options(plan, address)}

    def body(self, request: ApiRequest) -> dict[str, Any]:
        """Vectors of length 1 whatever the model's files say; a length is refused, not cut."""
        return {**request.body, "use_activation": True} if self.kind == "embeddings" else request.body

    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        manifest = pooling_manifest(self.kind)
        return LoadedModel(context_length=card["max_model_len"], slots=slots(plan), manifest=manifest, sleep=ability(plan))


class VllmEmbedder(_Pooling):
    """Vectors by the pooling that the model's files name, or else by vLLM's own choice for its kind."""

    kind = "embeddings"


class VllmReranker(_Pooling):
    """Scores of a classifier with one label."""

    kind = "rerank"
