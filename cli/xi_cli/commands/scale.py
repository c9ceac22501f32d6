"""`xi scale`: more or fewer replicas of a model that serves."""

from __future__ import annotations

import click

from xi_cli.options import client_options, connect, json_option, print_json, say


@click.command()
@click.argument("uid", metavar="MODEL")
@click.argument("replica", type=click.IntRange(1, 1024), metavar="N")
@json_option
@client_options
def scale(uid: str, replica: int, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Have N replicas of a model, while it serves.

    New ones serve as soon as they are ready; those that go take no new requests and finish what they run. `xi list` shows how many are
    ready.

    \b
    Examples:
      xi scale xi-tiny 3
      xi scale xi-tiny 1
    """
    connect(endpoint, api_key).scale(uid, replica)
    if as_json:
        print_json({"model_uid": uid, "replica": replica})
    else:
        say(f"{uid}: {replica} replica(s) from now on. See them come and go: xi list")
