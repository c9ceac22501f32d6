"""What `xi worker` and `xi gateway` have in common: the options of who joins a cluster, and how the token is handed on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from xi_cli.options import verbose_option
from xi_cli.server_command import level_of
from xi_core.cluster import joining
from xi_core.config import settings
from xi_core.errors import ConfigError
from xi_core.log_level import LOG_LEVELS

F = TypeVar("F", bound=Callable[..., Any])


def member_options(command: F) -> F:
    """`-e`, `--name`, `--token`, `--token-file`, `--log-level`, `-v`."""
    for option in (
        verbose_option,
        click.option("--log-level", type=click.Choice(LOG_LEVELS), help="How much to log. [env: XI_LOG_LEVEL; default: info]"),
        click.option("--token-file", type=click.Path(dir_okay=False, path_type=Path), help="A file that holds the join token."),
        click.option("--token", metavar="TOKEN", help="The join token; needed once. [env: XI_JOIN_TOKEN]"),
        click.option("--name", metavar="NAME", help="Its name in the cluster. [default: the machine's name]"),
        click.option(
            "-e",
            "--endpoint",
            metavar="ENDPOINT",
            help="The supervisor, tcp://HOST:PORT, or its gateway's URL. [default: the token's]",
        ),
    ):
        command = option(command)
    return command


def endpoint_of(endpoint: str | None, token: str) -> str:
    """Where to join: as given, else by the token, else the server that commands talk to. Raises `UsageError`."""
    try:
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            joining.join_port(endpoint)
        read = joining.read(token) if token else None
    except ConfigError as error:
        raise click.UsageError(error.message) from None
    return endpoint or (read.endpoints[0] if read is not None else settings().endpoint)


def token_of(token: str | None, token_file: Path | None) -> str:
    """The join token from wherever it is; empty where there is none. Raises `UsageError`."""
    if token and token_file:
        raise click.UsageError("--token and --token-file: give one")
    if token_file is not None:
        try:
            token = token_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"--token-file {token_file} can't be read: {error}") from None
        if not token.strip():
            raise click.UsageError(f"--token-file {token_file} is empty")
    return (token or settings().join_token).strip()


def member_process(
    ctx: click.Context, module: str, endpoint: str | None, token: str, name: str | None, log_level: str | None
) -> tuple[list[str], dict[str, str]]:
    """The command line of a member's process, and its environment, where the token travels: `ps` shows command lines to everybody."""
    level = level_of(ctx, log_level)
    command = [sys.executable, "-P", "-m", module, "--supervisor", endpoint_of(endpoint, token)]
    command += ["--name", name] if name else []
    environment = {**os.environ, "XI_LOG_LEVEL": level}
    environment.pop("XI_JOIN_TOKEN", None)
    return command, environment | ({"XI_JOIN_TOKEN": token} if token else {})
