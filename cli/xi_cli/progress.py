"""Progress of launches and downloads on stderr: live bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from xi_core.api.control import ModelStatus, ReplicaStatus
from xi_core.api.transfer import FileTransfer, ModelTransfer

LINES = 5.0
"""Seconds between two lines of one kind where there is no terminal."""


class Bars:
    """A bar for each name, and below it one for each file that comes for it; without a terminal, lines. A context manager."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr)
        self._live = sys.stderr.isatty() and not console.is_dumb_terminal
        self._tasks: dict[tuple[str, str], TaskID] = {}
        """By name and file; the file is empty for the whole."""
        self._told: dict[str, tuple[str, float]] = {}
        self._rows = _Rows(
            SpinnerColumn(),
            BarColumn(bar_width=min(24, console.width // 5)),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not self._live,
        )

    def __enter__(self) -> Self:
        self._rows.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rows.stop()

    def show(self, name: str, stage: str, share: float | None, download: ModelTransfer | None = None) -> None:
        """How far what is called `name`, empty where there is only one, has come: `share`, 0 to 1, of `stage`, in words."""
        label = f"{name}: " if name else ""
        files = download.files if download is not None and download.files_total > 1 else []
        if not self._live:
            self._write(name, label, stage, files)
            return
        for gone in [key for key in self._tasks if key[0] == name and key[1] not in ("", *(file.name for file in files))]:
            self._rows.remove_task(self._tasks.pop(gone))
        self._draw((name, ""), f"{label}{stage if download is None else _in_all(download)}", share)
        for file in files:
            self._draw((name, file.name), f"  {file.note or file.words()}  {file.name}", file.done / max(1, file.total))

    def forget(self, name: str) -> None:
        """Show it no longer."""
        for gone in [key for key in self._tasks if key[0] == name]:
            self._rows.remove_task(self._tasks.pop(gone))

    def _draw(self, key: tuple[str, str], text: str, share: float | None) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._rows.add_task("", total=None, name=key[0], whole=not key[1])
        total = None if share is None else 1.0
        self._rows.update(self._tasks[key], description=text, total=total, completed=share or 0.0)

    def _write(self, name: str, label: str, stage: str, files: Iterable[FileTransfer]) -> None:
        said, told_at = self._told.get(name, ("", 0.0))
        kind, now = stage.partition(":")[0], time.monotonic()
        if stage == said or (kind == said.partition(":")[0] and now - told_at < LINES):
            return
        self._told[name] = stage, now
        click.echo(f"{label}{stage}", err=True)
        for file in files:
            click.echo(f"{label}  {file.name}: {file.note or file.words()}", err=True)


class LaunchProgress(Bars):
    """Shows each status of a launch that it is called with."""

    def __call__(self, status: ModelStatus) -> None:
        """Show one status."""
        if not status.replicas:
            self.show(status.model_uid, status.state, None)
            return
        self.forget(status.model_uid)  # the launch as a whole was shown before it had replicas; they replace it
        for replica in status.replicas:
            self.show(replica.replica_id, _detail(replica), _share(replica), replica.download)


class _Rows(Progress):
    """Files stand below what they are for, whenever they came."""

    def get_renderables(self) -> Iterable[RenderableType]:
        names = list(dict.fromkeys(task.fields["name"] for task in self.tasks))
        order = sorted(self.tasks, key=lambda task: (names.index(task.fields["name"]), not task.fields["whole"], task.id))
        yield self.make_tasks_table(order)


def _in_all(download: ModelTransfer) -> str:
    return f"downloading {download.words()} ({download.files_done}/{download.files_total} files)"


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
