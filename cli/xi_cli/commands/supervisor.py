"""`xi supervisor`: become the launcher of supervisor and gateway, which workers of other machines join."""

from __future__ import annotations

import click

from xi_cli.commands.serve import become, launcher_command
from xi_cli.options import allow_origin_option, verbose_option
from xi_cli.server_command import ServerCommand
from xi_core.config import CLUSTER_PORT
from xi_core.log_level import LOG_LEVELS


@click.command(cls=ServerCommand)
@click.option("-H", "--host", metavar="HOST", help="This machine's address, for clients and workers. [env: XI_HOST; default: 127.0.0.1]")
@click.option(
    "-p", "--port", type=click.IntRange(0, 65535), metavar="PORT", help="HTTP port; 0: any free one. [env: XI_PORT; default: 9997]"
)
@click.option(
    "--cluster-port",
    type=click.IntRange(0, 65534),
    default=CLUSTER_PORT,
    show_default=True,
    metavar="PORT",
    help="Port for workers and gateways; they join at the next one. 0: any two neighbours.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="How much to log. [env: XI_LOG_LEVEL; default: info]")
@click.option(
    "-ak", "--api-key", metavar="KEY", help="Ask clients for this key. [env: XI_API_KEY, which keeps it out of the shell's history]"
)
@click.option("--no-auth", is_flag=True, help="Listen on other addresses than loopback without a key: whoever reaches the port may use it.")
@allow_origin_option
@click.option("--no-restore", is_flag=True, help="Forget what ran when xi was stopped; without it that is launched again.")
@click.option("--json", "as_json", is_flag=True, help="When all is ready, print one JSON line: endpoints, processes, a join token.")
@verbose_option
@click.pass_context
def supervisor(
    ctx: click.Context,
    host: str | None,
    port: int | None,
    cluster_port: int,
    log_level: str | None,
    api_key: str | None,
    no_auth: bool,
    allow_origins: tuple[str, ...],
    no_restore: bool,
    as_json: bool,
) -> None:
    """Start the head of a cluster: supervisor and gateway.

    Models run on the machines that join it. Prints the line with which another machine joins; it holds a token that is good for one
    machine and one hour. Traffic between the machines is encrypted, and only who has joined is let in.

    \b
    Examples:
      XI_API_KEY=a-long-secret xi supervisor -H 10.0.0.5
      xi supervisor                      # workers on this machine only
    """
    command, environment = launcher_command(ctx, host, port, log_level, api_key, no_auth, allow_origins, no_restore, as_json)
    become([*command, "--cluster-port", str(cluster_port)], environment)
