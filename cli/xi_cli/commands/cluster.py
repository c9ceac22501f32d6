"""`xi cluster`: the machines, and who may join."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from xi_cli.options import client_options, common, connect, json_option, print_json, say

if TYPE_CHECKING:
    from xi_core.api.control import MemberRole, WorkerStatus

GIB = 2**30
STAMP = "%Y-%m-%d %H:%M"


@click.group(invoke_without_command=True)
@json_option
@client_options
@click.pass_context
def cluster(context: click.Context, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Show the workers: devices, memory, load, versions, and in what they aren't alike.

    With -v also each worker's plugins with their versions.

    `xi cluster members` lists who may join, connected or not; `xi cluster remove NAME` strikes one of them off that list, which ends it;
    `xi cluster rotate-gateway-keys` replaces the keys that gateways show to replicas. Each has a --help of its own.

    \b
    Examples:
      xi cluster
      xi cluster -v
      xi cluster --json
      xi cluster members
      xi cluster remove node-3
    """
    if context.invoked_subcommand is not None:
        if endpoint or api_key or as_json:
            raise click.UsageError(f"options go behind the command: xi cluster {context.invoked_subcommand} [OPTIONS]")
        return
    workers = connect(endpoint, api_key).workers()
    if as_json:
        print_json(workers)
        return
    if not workers:
        say("No worker has joined. `xi join-token` prints how to start one.")
        return
    from xi_cli.draw import table

    table(
        ("WORKER", "STATE", "ADDRESS", "XI", "CPUS", "DEVICE", "MEMORY", "BUSY", "REPLICAS"),
        [row for w in workers for row in _rows(w)],
    )
    if common(context).verbose:
        click.echo()
        table(("WORKER", "PLUGIN", "VERSION"), [(w.name, name, version) for w in workers for name, version in sorted(w.plugins.items())])
    for worker in workers:
        for difference in worker.differences:
            say(f"{worker.name}: {difference}")


@cluster.command()
@json_option
@client_options
def members(as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """List the workers and gateways that have joined, and may again without a token."""
    found = connect(endpoint, api_key).members()
    if as_json:
        print_json(found)
        return
    if not found:
        say("Nobody has joined. `xi join-token` prints how to start a worker.")
        return
    from xi_cli.draw import table

    rows = [(one.name, one.role, time.strftime(STAMP, time.localtime(one.joined)), "yes" if one.linked else "no") for one in found]
    table(("NAME", "ROLE", "JOINED", "CONNECTED"), rows)


@cluster.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["worker", "gateway"]), default=None, help="Where a worker and a gateway have this name.")
@click.option("--force", is_flag=True, help="Also a worker that runs replicas: they are cut off, and started elsewhere.")
@json_option
@client_options
def remove(name: str, role: MemberRole | None, force: bool, as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Strike the worker or gateway NAME off the list of those who may join, and cut its connections.

    It says so and ends. It comes in again only with a new join token. Empty a worker first: xi drain NAME.
    """
    removed = connect(endpoint, api_key).remove_member(name, role, force=force)
    if as_json:
        print_json(removed)
        return
    say(f"Removed: {removed.role} {name}")
    if removed.role == "gateway":
        _say_older(removed.replicas)
    elif removed.replicas:
        say(f"Started elsewhere, as far as there is room: {', '.join(removed.replicas)}")


@cluster.command("rotate-gateway-keys")
@json_option
@client_options
def rotate_gateway_keys(as_json: bool, endpoint: str | None, api_key: str | None) -> None:
    """Replace the keys that gateways show to replicas on other machines. Nothing is interrupted."""
    rotated = connect(endpoint, api_key).rotate_gateway_keys()
    if as_json:
        print_json(rotated)
        return
    say("Gateways have new keys, which replicas that are started from now on want to see.")
    _say_older(rotated.replicas)


def _say_older(replicas: list[str]) -> None:
    if replicas:
        say(f"These open to the older keys until they are started anew (xi drain WORKER moves them): {', '.join(replicas)}")


def _rows(worker: WorkerStatus) -> list[tuple[object, ...]]:
    """The worker itself, then each device."""
    first = (worker.name, worker.state, worker.address, worker.version, worker.cpus or None)
    whole = f"{worker.memory / GIB:.1f} GiB" if worker.memory else None
    rows: list[tuple[object, ...]] = [(*first, "CPU", whole, None, len(worker.replicas))]
    for device in worker.devices:
        memory = f"{device.memory_free / GIB:.1f} of {device.memory / GIB:.1f} GiB free"
        rows.append(("", "", "", "", "", f"{device.id} {device.name}".strip(), memory, f"{device.utilisation:.0%}", device.replicas))
    return rows
