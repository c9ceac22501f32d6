"""`SglangEmbedder`: models that give vectors, by `--is-embedding`. Imported in the replica only."""

from __future__ import annotations

from typing import Any

from xi_core.engine.base import ApiRequest, LoadedModel
from xi_core.wire.manifest import pooling_manifest
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.sglang.command import slots_of
from xi_plugins.engines.sglang.engine import SglangEngine
from xi_plugins.engines.sglang.sleeping import ability
from xi_plugins.engines.sglang.tokens import check_ids


class SglangEmbedder(SglangEngine):
    """Vectors by the pooling that SGLang has for the model's kind: of decoders, the last token's state, at length 1."""

    embedding = True

    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        manifest = pooling_manifest("embeddings")
        return LoadedModel(context_length=card["max_model_len"], slots=slots_of(plan), manifest=manifest, sleep=ability(plan))

    def body(self, request: ApiRequest) -> dict[str, Any]:
        for index, text in enumerate(request.body["input"]):
            check_ids(text, self._vocabulary, f"input[{index}]")
        return request.body

    def second_body(self, request: ApiRequest, data: bytes) -> dict[str, Any] | None:
        return None
