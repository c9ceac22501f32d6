"""`xi logs`: what a replica has written, wherever it runs."""

from __future__ import annotations

import sys
import time

import click

from xi_cli.options import client_options, connect, say

POLL = 0.5
TAIL = 65536


@click.command()
@click.argument("uid", metavar="MODEL")
@click.option("--replica", type=click.IntRange(0), metavar="R", help="Its number, from 0; default: the first that there is.")
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, metavar="K", help="Of a replica that several workers share.")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("-n", "--bytes", "size", type=click.IntRange(1), default=TAIL, show_default=True, help="How much of the end to begin with.")
@click.option("-p", "--previous", is_flag=True, help="The log before: of the replica's last life, or of what was too much for one file.")
@client_options
def logs(
    uid: str, replica: int | None, rank: int, follow: bool, size: int, previous: bool, endpoint: str | None, api_key: str | None
) -> None:
    """Show the end of a replica's log.

    \b
    Examples:
      xi logs xi-tiny
      xi logs xi-tiny --replica 1 -f
      xi logs xi-tiny --previous
      xi logs big-model --replica 0 --rank 3
    """
    if previous and follow:
        raise click.UsageError("--previous shows a log that nobody writes to any more: leave -f/--follow out")
    client, start = connect(endpoint, api_key), -size
    while True:
        part = client.log(uid, replica=replica, rank=rank, start=start, previous=previous)
        sys.stdout.write(part.text)
        sys.stdout.flush()
        more, start = part.next > part.start, part.next
        if more:
            continue
        if not follow:
            if not part.next:
                nothing = "has no earlier log, or an empty one" if previous else "has written nothing yet"
                say(f"{part.replica_id} {nothing} (rank {part.rank}, worker {part.worker})")
            return
        time.sleep(POLL)
