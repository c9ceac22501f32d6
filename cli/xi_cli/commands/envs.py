"""`xi envs`: the environments of models."""

from __future__ import annotations

import time

import click

from xi_cli.options import client_options, connect, json_option, print_json, say

MIB = 2**20
STAMP = "%Y-%m-%d %H:%M"


@click.group()
def envs() -> None:
    """The environments that models run in, where a launch brought packages of its own.

    \b
    Examples:
      xi envs list
      xi envs remove 0123456789abcdef
    """


@envs.command("list")
@json_option
@client_options
def list_(as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """List the environments of all workers, the last used first."""
    found = connect(endpoint, api_key).environments()
    if as_json:
        print_json(found)
        return
    if not found:
        say("There is no environment. A launch makes one: xi launch MODEL -en ENGINE --virtual-env-package 'NAME==VERSION'")
        return
    from xi_cli.draw import table

    rows = [
        (
            one.worker,
            one.name,
            f"{one.size / MIB:.0f} MiB",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used)),
            " ".join(one.packages),
        )
        for one in found
    ]
    table(("WORKER", "NAME", "SIZE", "USED", "PACKAGES"), rows)


@envs.command()
@click.argument("name")
@client_options
def remove(name: str, endpoint: str | None, api_key: str | None) -> None:
    """Delete an environment that no model uses."""
    connect(endpoint, api_key).remove_environment(name)
    say(f"Removed: {name}")
