"""`xi stop-cluster`: end everything."""

from __future__ import annotations

import click

from xi_cli.options import client_options, confirm, connect, say


@click.command("stop-cluster")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@client_options
def stop_cluster(yes: bool, endpoint: str | None, api_key: str | None) -> None:
    """Stop every worker with its models, every gateway and the supervisor.

    Those that are away dial on, and have to be stopped on their own machines.

    \b
    Examples:
      xi stop-cluster
      xi stop-cluster --yes
    """
    client = connect(endpoint, api_key)
    if not yes:
        running = sum(len(worker.replicas) for worker in client.workers())
        confirm(f"Stop the cluster at {client.endpoint} with {running} replica(s)?", "nothing was stopped")
    client.stop_cluster()
    say("The cluster is being stopped.")
