"""Progress of a launch on stderr: a live bar per replica on a terminal, a line per change elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from xi_core.api.control import ModelStatus, ReplicaStatus


class LaunchProgress:
    """Shows each status that it is called with. A context manager: leaving it ends the drawing."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._said: dict[str, str] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
            disable=not self._live,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def __call__(self, status: ModelStatus) -> None:
        """Show one status."""
        if not status.replicas:
            self._show(status.model_uid, status.state, None)
            return
        self._forget(status.model_uid)
        for replica in status.replicas:
            self._show(replica.replica_id, _detail(replica), _share(replica))

    def _forget(self, name: str) -> None:
        """The launch as a whole was shown before it had replicas; they replace it."""
        task = self._tasks.pop(name, None)
        if task is not None:
            self._bars.remove_task(task)

    def _show(self, name: str, detail: str, share: float | None) -> None:
        if self._live:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=None, detail=detail)
            total = None if share is None else 1.0
            self._bars.update(self._tasks[name], detail=detail, total=total, completed=share or 0.0)
        elif self._said.get(name) != detail:
            click.echo(f"{name}: {detail}", err=True)
            self._said[name] = detail


def _share(replica: ReplicaStatus) -> float | None:
    return 1.0 if replica.state == "READY" else replica.progress


def _detail(replica: ReplicaStatus) -> str:
    """What a replica is at: `LOADING weights 40 %`."""
    parts: list[str] = [replica.state]
    if replica.state != "READY":
        if replica.stage and replica.stage.upper() != replica.state:
            parts.append(replica.stage)
        if replica.progress is not None:
            parts.append(f"{int(replica.progress * 10) * 10} %")
    if replica.restarts:
        parts.append(f"(restart {replica.restarts})")
    return " ".join(parts)
