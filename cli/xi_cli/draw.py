"""Tables on stdout, drawn by rich. Imported only by commands that draw."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 4000
"""Width of a table that no terminal shows: wide enough that nothing is cut or wrapped for `grep`."""

STATE_STYLES = {
    "READY": "green", "loaded": "green", "yes": "green", "FAILED": "red", "quarantined": "red", "no": "yellow", "blocked": "yellow",
}  # fmt: skip


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headers. Cells are plain text: brackets in them are no markup. None shows as `-`."""
    terminal = sys.stdout.isatty()
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        drawn.add_column(header, overflow="fold", no_wrap=not terminal)
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    Console(file=sys.stdout, width=None if terminal else PIPE_WIDTH, highlight=False).print(drawn)


def _cell(value: object) -> Text:
    text = "-" if value is None or value == "" else str(value)
    return Text(text, style=STATE_STYLES.get(text, ""))
