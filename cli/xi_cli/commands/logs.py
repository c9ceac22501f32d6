"""`xi logs`: what a replica has written, wherever it runs."""

from __future__ import annotations

import sys
import time
from functools import partial

import click

from xi_cli.options import client_options, connect, say
from xi_cli.patience import Patience

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
    ask = partial(connect(endpoint, api_key).log, uid, replica=replica, rank=rank, previous=previous)
    patience, source, start, left = Patience(), None, -size, size
    while True:
        question = partial(ask, start=start)
        part = patience.ask(question) if follow and source else question()
        if part is None:
            time.sleep(POLL)
            continue
        patience.heard()
        before, source = source, (part.replica_id, part.worker)
        if before not in (None, source):  # another one is the first now, or it has moved: its bytes are not counted from where we were
            say(f"Now the log of {part.replica_id} (worker {part.worker}), from its beginning")
            start = 0
            continue
        sys.stdout.write(part.text)
        sys.stdout.flush()
        read, start = part.next - part.start, part.next
        left -= read
        if read and (follow or left > 0):
            continue
        if not follow:
            if not part.next:
                nothing = "has no earlier log, or an empty one" if previous else "has written nothing yet"
                say(f"{part.replica_id} {nothing} (rank {part.rank}, worker {part.worker})")
            return
        time.sleep(POLL)
