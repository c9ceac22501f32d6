"""The page of metrics, for `reference.py`: what a gateway declares, whether or not it has counted any."""

from __future__ import annotations

import asyncio

from page_texts import cell, code, table

from xi_core.config import Settings
from xi_core.plugins import PluginHub
from xi_server.app import create_app
from xi_server.gateway import Gateway
from xi_server.metrics import KEPT, SECONDS, Metrics

HEAD = f"""# Metrics

Made from what a gateway declares. `GET /metrics` shows them in Prometheus' text format, and asks for the API key where there is one.
Replicas have no page of their own: what they and their engines count comes with their answers to the gateways' pings.

Each gateway counts the requests that it was asked itself, from its start on: sum those of several. `xi_replica_running`,
`xi_replica_waiting` and `xi_engine_…` are the replica's own numbers, and the same at each gateway: don't sum these. What was counted of a
model is shown for {KEPT / 60:g} minutes after it has gone.

* `model`: the launch's uid; empty for requests that named none that there is
* `replica`: the replica's id, as in `GET /v1/models/{{uid}}/replicas`
* `route`: the path, with `{{…}}` where it has a name in it
* `status`: the HTTP status of the answer; 499: the client left before it was complete

A histogram is shown as `…_bucket` with the label `le`, `…_sum` and `…_count`. Its buckets end at these seconds:
{", ".join(f"{bound:g}" for bound in SECONDS)}.
"""


def metrics() -> str:
    """Every metric: name, type, labels, meaning."""
    rows = [
        [code(one.name), one.kind, ", ".join(code(label) for label in one.labels), cell(one.text)]
        for one in asyncio.run(_declared()).declared
    ]
    return HEAD + "\n" + table(["name", "type", "labels", "meaning"], rows)


async def _declared() -> Metrics:  # a gateway wants a loop
    gateway = Gateway(Settings(), PluginHub.load(), "inproc://nowhere")
    create_app(gateway)
    return gateway.metrics
