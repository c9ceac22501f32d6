"""`xi cluster`: the machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from xi_cli.options import client_options, connect, json_option, print_json, say

if TYPE_CHECKING:
    from xi_core.api.control import WorkerStatus

GIB = 2**30


@click.command()
@json_option
@client_options
def cluster(as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Show the workers: devices, memory, load, versions, and in what they aren't alike.

    \b
    Examples:
      xi cluster
      xi cluster --json
    """
    workers = connect(endpoint, api_key).workers()
    if as_json:
        print_json(workers)
        return
    if not workers:
        say("No worker has joined. `xi join-token` prints how to start one.")
        return
    from xi_cli.draw import table

    table(
        ("WORKER", "STATE", "ADDRESS", "XI", "CPUS", "DEVICE", "MEMORY FREE", "BUSY", "REPLICAS"),
        [row for w in workers for row in _rows(w)],
    )
    for worker in workers:
        for difference in worker.differences:
            say(f"{worker.name}: {difference}")


def _rows(worker: WorkerStatus) -> list[tuple[object, ...]]:
    """The worker itself, then each device."""
    first = (worker.name, worker.state, worker.address, worker.version, worker.cpus or None)
    rows: list[tuple[object, ...]] = [(*first, "CPU", None, None, len(worker.replicas))]
    for device in worker.devices:
        memory = f"{device.memory_free / GIB:.1f} of {device.memory / GIB:.1f} GiB"
        rows.append(("", "", "", "", "", f"{device.id} {device.name}".strip(), memory, f"{device.utilisation:.0%}", device.replicas))
    return rows
