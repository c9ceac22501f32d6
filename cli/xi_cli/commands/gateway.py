"""`xi gateway`: become one more gateway of a cluster."""

from __future__ import annotations

from pathlib import Path

import click

from xi_cli.commands.serve import become
from xi_cli.member_options import member_options, member_process, token_of
from xi_cli.options import allow_origin_option, common
from xi_cli.server_command import ServerCommand
from xi_core.access import allowed_origins, check_access
from xi_core.config import settings
from xi_core.errors import ConfigError


@click.command(cls=ServerCommand)
@click.option("-H", "--host", metavar="HOST", help="The address to listen on. [env: XI_HOST; default: 127.0.0.1]")
@click.option(
    "-p", "--port", type=click.IntRange(0, 65535), metavar="PORT", help="The port; 0: any free one. [env: XI_PORT; default: 9997]"
)
@click.option(
    "-ak", "--api-key", metavar="KEY", help="Ask clients for this key. [env: XI_API_KEY, which keeps it out of the shell's history]"
)
@click.option("--no-auth", is_flag=True, help="Listen on other addresses than loopback without a key: whoever reaches the port may use it.")
@allow_origin_option
@member_options
@click.pass_context
def gateway(
    ctx: click.Context,
    endpoint: str | None,
    host: str | None,
    port: int | None,
    api_key: str | None,
    no_auth: bool,
    allow_origins: tuple[str, ...],
    name: str | None,
    token: str | None,
    token_file: Path | None,
    log_level: str | None,
) -> None:
    """Serve a cluster's models from one more machine.

    It joins with a token for gateways, which `xi join-token --role gateway` makes, and then serves from its own routing table.

    \b
    Examples:
      xi gateway -e tcp://10.0.0.5:9998 --token xi1.…
      XI_API_KEY=a-long-secret xi gateway -e tcp://10.0.0.5:9998 -H 10.0.0.7 --token-file token.txt
    """
    ours, group = settings(), common(ctx)
    host = host or group.host or ours.host
    port = next(p for p in (port, group.port, ours.port) if p is not None)
    key, origins = api_key or ours.api_key, ",".join(allow_origins) or ours.allow_origins
    try:
        check_access(host, key, no_auth)
        allowed_origins(origins, key)
    except ConfigError as error:
        raise click.UsageError(error.message) from None
    command, environment = member_process(ctx, "xi_server", endpoint, token_of(token, token_file), name, log_level)
    command += ["--join", "--host", host, "--port", str(port), *(["--no-auth"] if no_auth else [])]
    given = {"XI_API_KEY": key, "XI_ALLOW_ORIGINS": origins}
    become(command, environment | {name: value for name, value in given.items() if value})
