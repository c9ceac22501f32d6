"""`xi worker`: become the worker of this machine."""

from __future__ import annotations

from pathlib import Path

import click

from xi_cli.commands.serve import become
from xi_cli.member_options import member_options, member_process, token_of
from xi_cli.options import common
from xi_cli.server_command import ServerCommand


@click.command(cls=ServerCommand)
@click.option("-H", "--host", metavar="HOST", help="The address at which gateways reach this machine. [default: that by which it dials]")
@member_options
@click.pass_context
def worker(
    ctx: click.Context,
    endpoint: str | None,
    host: str | None,
    name: str | None,
    token: str | None,
    token_file: Path | None,
    log_level: str | None,
) -> None:
    """Let this machine run models for a cluster.

    `xi supervisor` prints the whole line. The first time it shows a join token; then its key, under XI_HOME/cluster, is known. It runs
    until Ctrl-C, which ends its models too, and goes on dialling while the supervisor is away.

    \b
    Examples:
      xi worker -e tcp://10.0.0.5:9998 --token xi1.…
      xi worker -e http://10.0.0.5:9997 -H 10.0.0.6 --token-file token.txt
    """
    command, environment = member_process(ctx, "xi_core.cluster.worker", endpoint, token_of(token, token_file), name, log_level)
    host = host or common(ctx).host
    become([*command, *(["--host", host] if host else [])], environment)
