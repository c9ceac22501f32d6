"""The `least_loaded` router. Called by the gateway for each request."""

from __future__ import annotations

from collections.abc import Sequence

from xi_core.cluster.routing import ReplicaView, Router, RouteRequest

MAX_REMEMBERED = 4096


class LeastLoaded(Router):
    """Fewest outstanding tokens, then fewest outstanding requests; of equal replicas the one chosen longest ago, then by name."""

    def __init__(self) -> None:
        self._turn = 0
        self._chosen: dict[str, int] = {}

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> str:
        chosen = self._chosen
        best = min(replicas, key=lambda view: (view.tokens, view.outstanding, chosen.get(view.replica_id, 0), view.replica_id)).replica_id
        if len(chosen) >= MAX_REMEMBERED:
            chosen.clear()  # replicas that are gone
        self._turn += 1
        chosen[best] = self._turn
        return best
