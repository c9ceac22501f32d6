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
@client_options
def logs(uid: str, replica: int | None, rank: int, follow: bool, size: int, endpoint: str | None, api_key: str | None) -> None:
    """Show the end of a replica's log.

    \b
    Examples:
      xi logs xi-tiny
      xi logs xi-tiny --replica 1 -f
      xi logs big-model --replica 0 --rank 3
    """
    client, start = connect(endpoint, api_key), -size
    while True:
        part = client.log(uid, replica=replica, rank=rank, start=start)
        sys.stdout.write(part.text)
        sys.stdout.flush()
        more, start = part.next > part.start, part.next
        if more:
            continue
        if not follow:
            if not part.next:
                say(f"{part.replica_id} has written nothing yet (rank {part.rank}, worker {part.worker})")
            return
        time.sleep(POLL)
