"""What this gateway knows of each replica, in its `/metrics`, by model and replica."""

from __future__ import annotations

from collections.abc import Callable

from xi_server.breaker import STATES
from xi_server.metrics import Metrics, Samples
from xi_server.replica_link import ReplicaLink
from xi_server.table import RoutingTable

_SHOWN: tuple[tuple[str, str, Callable[[ReplicaLink], float]], ...] = (
    ("xi_replica_running", "Requests that a replica runs, by its last word.", lambda link: link.load.running),
    ("xi_replica_waiting", "Requests that wait in a replica, by its last word.", lambda link: link.load.waiting),
    ("xi_replica_tokens", "Expected tokens of this gateway's open requests on a replica.", lambda link: link.view.tokens),
    ("xi_replica_breaker", "A replica's circuit breaker: 0 closed, 1 half-open, 2 open.", lambda link: STATES.index(link.breaker.state)),
)
"""Name, text and number."""


def observe_replicas(metrics: Metrics, table: RoutingTable) -> None:
    """Show the gauges of every replica in `table`."""
    for name, text, number in _SHOWN:
        metrics.observe("gauge", name, text, ("model", "replica"), _reader(table, number))


def _reader(table: RoutingTable, number: Callable[[ReplicaLink], float]) -> Callable[[], Samples]:
    def read() -> Samples:
        for uid, model in table.models.items():
            for id, link in model.links.items():
                yield (uid, id), number(link)

    return read
