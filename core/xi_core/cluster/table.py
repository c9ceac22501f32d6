"""The routing table: what gateways need to know of launches, as numbered changes. The supervisor publishes it; see `TableUpdate`."""

from __future__ import annotations

from collections.abc import Mapping

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

    def change(self, models: Mapping[str, ModelRoute | None]) -> TableUpdate | None:
        """Set these models, by uid; None removes one. Answers the step from the last version to this one; None if nothing changed."""
        removed = [uid for uid, model in models.items() if model is None and uid in self._models]
        changed = {uid: msgspec.structs.replace(new) for uid, new in models.items() if new is not None and self._models.get(uid) != new}
        if not changed and not removed:
            return None
        for uid in removed:
            del self._models[uid]
        self._models.update(changed)
        self._version += 1
        return TableUpdate(epoch=self._epoch, version=self._version, full=False, models=list(changed.values()), removed=removed)
