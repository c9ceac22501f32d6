"""The routing table: what gateways need to know of launches, as numbered changes. The supervisor publishes it; see `TableUpdate`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from xi_core.cluster.messages import ModelRoute, TableUpdate


class RoutingTable:
    """The table at its latest version. `epoch` names the supervisor that counts the versions: another epoch needs a full table."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._version = 0
        self._models: dict[str, ModelRoute] = {}

    def snapshot(self) -> TableUpdate:
        """The whole table."""
        return TableUpdate(epoch=self._epoch, version=self._version, full=True, models=list(self._models.values()))

    def change(self, models: Iterable[ModelRoute]) -> TableUpdate | None:
        """Make `models` the table. Answers the step from the last version to this one; None if nothing changed."""
        new = {model.uid: msgspec.structs.replace(model) for model in models}
        changed = [model for uid, model in new.items() if self._models.get(uid) != model]
        removed = [uid for uid in self._models if uid not in new]
        if not changed and not removed:
            return None
        self._models = new
        self._version += 1
        return TableUpdate(epoch=self._epoch, version=self._version, full=False, models=changed, removed=removed)
