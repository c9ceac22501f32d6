"""The progress bar of `LLM.generate`, drawn by rich, on a terminal only. rich is imported when a bar is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """What to call for each prompt that is answered, with its place. It draws if `wanted` and stderr is a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda _: bar.advance(task)
