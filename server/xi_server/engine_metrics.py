"""What engines' libraries count, in the gateway's `/metrics`: `xi_engine_…`, by model and replica, as it rides on the replicas' pongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from xi_core.wire.frames import EngineCounters
from xi_server.metrics import Metrics, Samples
from xi_server.table import RoutingTable

LABELS = ("model", "replica")
_SHOWN: tuple[tuple[Literal["gauge", "counter"], str, str, str], ...] = (
    ("gauge", "running", "xi_engine_running", "Requests that the engine's library runs."),
    ("gauge", "waiting", "xi_engine_waiting", "Requests that wait within the engine's library."),
    ("gauge", "cache_usage", "xi_engine_cache_usage_ratio", "Share of the key-value cache that is in use, 0 to 1."),
    ("counter", "prefix_queries", "xi_engine_prefix_cache_queries_total", "Prompt tokens looked for in the cache of prefixes."),
    ("counter", "prefix_hits", "xi_engine_prefix_cache_hits_total", "Prompt tokens found in the cache of prefixes."),
    ("counter", "prompt_tokens", "xi_engine_prompt_tokens_total", "Prompt tokens that the engine's library has taken."),
    ("counter", "generated_tokens", "xi_engine_generated_tokens_total", "Tokens that the engine's library has generated."),
)
"""Kind, field of `EngineCounters`, name and text."""


def observe_engines(metrics: Metrics, table: RoutingTable) -> None:
    """Show what the engines behind `table` count; one that counts nothing is left out."""
    for kind, field, name, text in _SHOWN:
        metrics.observe(kind, name, text, LABELS, _reader(table, field))


def _reader(table: RoutingTable, field: str) -> Callable[[], Samples]:
    def read() -> Samples:
        for uid, model in table.models.items():
            for id, link in model.links.items():
                counters: EngineCounters | None = link.load.engine
                if counters is not None:
                    yield (uid, id), getattr(counters, field)

    return read
