"""`xi drain`: empty a worker without a failed request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from xi_cli.group import Failure
from xi_cli.options import client_options, connect, finite, json_option, print_json, say
from xi_cli.patience import Patience

if TYPE_CHECKING:
    from xi_core.client import Client

POLL = 0.5


@click.command()
@click.argument("worker")
@click.option(
    "--timeout", type=click.FloatRange(0, 7 * 24 * 3600), callback=finite, default=600.0, show_default=True,
    help="Seconds; what is left then ends.",
)  # fmt: skip
@click.option("--undo", is_flag=True, help="Let the worker take replicas again.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until nothing runs there.")
@json_option
@client_options
def drain(worker: str, timeout: float, undo: bool, wait: bool, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Move everything that runs on WORKER to other workers.

    Each replica goes on serving until its replacement elsewhere is ready. What finds no place elsewhere serves until the timeout, then
    finishes its requests and ends. Nothing new is placed on the worker until --undo, also after restarts of it or of the supervisor.

    \b
    Examples:
      xi drain node-3
      xi drain node-3 --timeout 60
      xi drain node-3 --undo
    """
    client = connect(endpoint, api_key)
    client.drain(worker, timeout, undo=undo)
    if wait and not undo:
        _await_empty(client, worker)
    if as_json:
        print_json({"worker": worker, "draining": not undo})
    elif undo:
        say(f"{worker} takes replicas again")
    else:
        say(f"{worker} is empty" if wait else f"{worker} is being drained")


def _await_empty(client: Client, worker: str) -> None:
    """Wait until the worker is here and nothing runs on it. Raises `Failure` where it stays away, for what runs there isn't known then."""
    patience, shown = Patience(), -1
    while True:
        listed = patience.ask(client.workers)
        left = next((one.replicas for one in listed or [] if one.name == worker and one.state != "away"), None)
        if left is not None:
            patience.heard()
            if not left:
                return
            if len(left) != shown:
                say(f"{worker}: {len(left)} replica(s) left: {', '.join(left)}")
                shown = len(left)
        elif patience.over:
            raise Failure(f"{worker} is away: what runs there isn't known; nothing new is placed on it")
        time.sleep(POLL)
