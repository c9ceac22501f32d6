"""`xi serve`: check what was asked for, then become the launcher. The servers' code is not imported here."""

from __future__ import annotations

import os
import sys

import click

from xi_cli.options import allow_origin_option, common, verbose_option
from xi_cli.server_command import ServerCommand, level_of
from xi_core.access import allowed_origins, check_access
from xi_core.cluster import init
from xi_core.config import settings
from xi_core.errors import ConfigError
from xi_core.log_level import LOG_LEVELS

LAUNCHER = "xi_core.cluster.launcher"


@click.command(cls=ServerCommand)
@click.option("-H", "--host", metavar="HOST", help="The address to listen on. [env: XI_HOST; default: 127.0.0.1]")
@click.option(
    "-p", "--port", type=click.IntRange(0, 65535), metavar="PORT", help="The port; 0: any free one. [env: XI_PORT; default: 9997]"
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="How much to log. [env: XI_LOG_LEVEL; default: info]")
@click.option(
    "-ak", "--api-key", metavar="KEY", help="Ask clients for this key. [env: XI_API_KEY, which keeps it out of the shell's history]"
)
@click.option("--no-auth", is_flag=True, help="Listen on other addresses than loopback without a key: whoever reaches the port may use it.")
@allow_origin_option
@click.option("--no-restore", is_flag=True, help="Forget what ran when xi was stopped; without it that is launched again.")
@click.option("--json", "as_json", is_flag=True, help="When all is ready, print one JSON line: the endpoint and the processes.")
@verbose_option
@click.pass_context
def serve(
    ctx: click.Context,
    host: str | None,
    port: int | None,
    log_level: str | None,
    api_key: str | None,
    no_auth: bool,
    allow_origins: tuple[str, ...],
    no_restore: bool,
    as_json: bool,
) -> None:
    """Start xi on this machine: supervisor, worker and gateway.

    Prints each process and the endpoint, and runs until Ctrl-C, which ends the models too; the next start launches them again. Only
    this machine can reach it unless -H names another address; that needs an API key, or --no-auth.

    \b
    Examples:
      xi serve
      xi serve -p 8000 --log-level debug
      XI_API_KEY=a-long-secret xi serve -H 0.0.0.0
    """
    become(*launcher_command(ctx, host, port, log_level, api_key, no_auth, allow_origins, no_restore, as_json))


def launcher_command(
    ctx: click.Context,
    host: str | None,
    port: int | None,
    log_level: str | None,
    api_key: str | None,
    no_auth: bool,
    allow_origins: tuple[str, ...],
    no_restore: bool,
    as_json: bool,
) -> tuple[list[str], dict[str, str]]:
    """The launcher's command line and environment, from options, the group's options and settings. Raises `UsageError`, `ConfigError`."""
    ours, group = settings(), common(ctx)
    host = host or group.host or ours.host
    port = next(p for p in (port, group.port, ours.port) if p is not None)
    log_level = level_of(ctx, log_level)
    key, origins = api_key or ours.api_key, ",".join(allow_origins) or ours.allow_origins
    try:
        check_access(host, key, no_auth)
        allowed_origins(origins, key)
    except ConfigError as error:
        raise click.UsageError(error.message) from None
    # -P: the directory that this is started in may hold a `json.py`, which is none of ours.
    command = [sys.executable, "-P", "-m", LAUNCHER, "--host", host, "--port", str(port), "--log-level", log_level]
    command += ["--no-auth"] * no_auth + ["--no-restore"] * no_restore + ["--json"] * as_json
    given = {"XI_API_KEY": key, "XI_ALLOW_ORIGINS": origins}
    return command, {**os.environ, **{name: value for name, value in given.items() if value}}


def become(command: list[str], environment: dict[str, str]) -> None:
    """Replace this process by `command`, so that signals reach the launcher itself. Windows can't: there it runs as a child.

    So it does as the first process of a container: below one that reaps what has lost its parent.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # Python's value for one that is closed
            stream.flush()
    if sys.platform == "win32":
        import subprocess

        raise SystemExit(subprocess.call(command, env=environment))
    if os.getpid() == 1:
        command = [sys.executable, "-I", "-S", init.__file__, *command]
    os.execve(command[0], command, environment)  # noqa: S606 - no shell is wanted
