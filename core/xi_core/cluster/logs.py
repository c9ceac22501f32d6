"""Log files of replicas: one per replica, rotated at its start, one old one kept. Their last lines are the reason of an unexpected end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

LINES = 15
TAIL = 16 * 1024
"""Bytes at the end of a log that are looked at."""


def log_file(home: Path, replica_id: str) -> Path:
    """Where this replica's output goes."""
    return home / "logs" / f"{replica_id}.log"


def open_log(home: Path, replica_id: str) -> IO[bytes]:
    """A new, empty log; what was there becomes `….log.1`."""
    path = log_file(home, replica_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.replace(path.with_name(path.name + ".1"))
    return open(path, "ab", buffering=0, opener=_private)


def tail(path: Path, lines: int = LINES) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            text = file.read(TAIL).decode("utf-8", "replace")
    except OSError:
        return ""
    kept = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(kept[-lines:])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
