"""Results of a benchmark: a table with the target beside each figure, and the same as JSON in `benchmarks/results/`."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"


class Row(msgspec.Struct, kw_only=True):
    """One claim, or without a target one figure to look at, which is always met.

    `value` is what is claimed: for a comparison the median of the pairs' ratios, ours over theirs.
    """

    what: str
    unit: str
    value: float
    target: str
    met: bool
    ours: float | None = None
    theirs: float | None = None
    peer: str = ""
    pairs: list[tuple[float, float]] = []
    """Each measured pair, ours and theirs, in the order in which they were taken."""


def at_most(what: str, unit: str, value: float, limit: float) -> Row:
    """A plain figure with an upper bound."""
    return Row(what=what, unit=unit, value=value, target=f"≤ {limit:g}", met=value <= limit)


def ratio(
    what: str, unit: str, peer: str, pairs: Sequence[tuple[float, float]], *, most: float | None = None, least: float | None = None
) -> Row:
    """A comparison by interleaved pairs: the median ratio, which is to be at most or at least so much, if either is given."""
    value = statistics.median(ours / theirs for ours, theirs in pairs)
    met = (most is None or value <= most) and (least is None or value >= least)
    target = f"≤ {most:g} ×" if most is not None else f"≥ {least:g} ×" if least is not None else ""
    return Row(
        what=what, unit=unit, value=value, target=target, met=met, peer=peer,
        ours=statistics.median(ours for ours, _ in pairs), theirs=statistics.median(theirs for _, theirs in pairs), pairs=list(pairs),
    )  # fmt: skip


def report(name: str, rows: Sequence[Row], conditions: dict[str, Any], *, save: bool) -> bool:
    """Print the table and, with `save`, write `benchmarks/results/<name>.json`. Returns whether all targets are met."""
    table = Table("", "xi", "peer", "unit", "ratio or value", "target", "met", title=f"{name}: {conditions}", title_justify="left")
    for row in rows:
        theirs = f"{_short(row.theirs)} ({row.peer})" if row.peer else ""
        met = "" if not row.target else "yes" if row.met else "NO"
        table.add_row(row.what, _short(row.ours), theirs, row.unit, _short(row.value), row.target, met)
    Console(width=150).print(table)
    if save:
        RESULTS.mkdir(exist_ok=True)
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
        data = {"name": name, "machine": machine, "conditions": conditions, "rows": rows}
        text = msgspec.json.format(msgspec.json.encode(msgspec.to_builtins(_rounded(data))), indent=1)
        (RESULTS / f"{name}.json").write_bytes(text + b"\n")
    return all(row.met for row in rows)


def _rounded(value: Any) -> Any:
    """Four significant digits are more than any of these figures has."""
    match msgspec.to_builtins(value):
        case float(number):
            return float(f"{number:.4g}")
        case dict(items):
            return {key: _rounded(item) for key, item in items.items()}
        case list(items) | tuple(items):
            return [_rounded(item) for item in items]
        case other:
            return other


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
