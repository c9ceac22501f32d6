"""`xi terminate`: end a launch."""

from __future__ import annotations

import click

from xi_cli.options import client_options, connect, json_option, one_of, print_json


@click.command()
@click.argument("uid", required=False)
@click.option("-u", "--model-uid", metavar="UID", help="The model's uid; as UID.")
@json_option
@client_options
def terminate(uid: str | None, model_uid: str | None, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """End a model and free what it holds.

    A launch that is not ready yet is cancelled. UID is the name that `xi launch` printed and `xi list` shows.

    \b
    Examples:
      xi terminate xi-tiny
      xi terminate --model-uid xi-tiny
    """
    named = one_of(model_uid, uid, "uid")
    if named is None:
        raise click.UsageError("no model: give its uid; `xi list` shows the uids")
    connect(endpoint, api_key).terminate(named)
    print_json({"model_uid": named}) if as_json else click.echo(f"Terminated: {named}")
