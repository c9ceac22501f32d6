"""Log files of replicas: one per replica, rotated at its start and when it is large, one old one kept. Of replicas that have ended, those
of the last ones are kept.

Their last lines are the reason of an unexpected end.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import IO

LARGEST = 16 * 1024 * 1024
"""Bytes of a log at which it is rotated while it is written to."""
KEPT = 200
"""Logs that are kept, those of replicas that run not counted in."""
LINES = 15
TAIL = 16 * 1024
"""Bytes at the end of a log that are looked at."""


def log_file(home: Path, replica_id: str, rank: int = 0, previous: bool = False) -> Path:
    """Where the output of this replica, or of its rank on this worker, goes; with `previous`, where what was there before is kept."""
    path = home / "logs" / (f"{replica_id}.rank{rank}.log" if rank else f"{replica_id}.log")
    return _old(path) if previous else path


def open_log(home: Path, replica_id: str, rank: int = 0) -> IO[bytes]:
    """A new, empty log; what was there becomes `….log.1`. Logs of replicas that ended long ago are deleted."""
    path = log_file(home, replica_id, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.replace(_old(path))
    forget(path.parent)
    return _in_use(open(path, "ab", buffering=0, opener=_private))


def _in_use(log: IO[bytes]) -> IO[bytes]:
    """With a lock, which whoever inherits the descriptor has too: it tells `forget` that somebody writes to this log."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(log, fcntl.LOCK_SH)
    return log


def forget(folder: Path, kept: int = KEPT) -> None:
    """Delete logs that nobody writes to, but for the newest."""
    with contextlib.suppress(OSError):  # of another worker of this XI_HOME, which does the same
        ended = sorted((path.stat().st_mtime, path) for path in folder.glob("*.log") if not _is_written(path))
        for _, path in ended[: max(0, len(ended) - kept)]:
            path.unlink(missing_ok=True)
            _old(path).unlink(missing_ok=True)


def _is_written(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_large(path: Path, largest: int = LARGEST) -> bool:
    """Whether a log is to be rotated."""
    try:
        return path.stat().st_size >= largest
    except OSError:
        return False


def bound(path: Path, largest: int = LARGEST) -> None:
    """Rotate the log of a process that goes on writing to it, if it is large: its lines are copied to `….log.1`, then it is emptied.

    Whatever the process writes between the two is lost. Where there is no room for a copy, the lines are lost: the log stays bounded.
    """
    if not is_large(path, largest):
        return
    with contextlib.suppress(OSError):
        with contextlib.suppress(OSError), path.open("rb") as log, open(_old(path), "wb", opener=_private) as old:
            shutil.copyfileobj(log, old)
        os.truncate(path, 0)


def tail(path: Path, lines: int = LINES) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = file.seek(max(0, size - TAIL))
            data = file.read(TAIL)
    except OSError:
        return ""
    text = data[_continued(data) if begin else 0 :].decode("utf-8", "replace")
    kept = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(kept[-lines:])


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def part(path: Path, start: int, most: int = 256 * 1024) -> tuple[str, int, int]:
    """Text of a log from byte `start` on (below 0: so many before the end), where it begins, and where to go on reading.

    A `start` beyond the end, as after a rotation, begins anew. No log yet is an empty one. A character of which only the beginning is there
    is left to the next part; one of which only the end is among the last bytes that are asked for is left out. `most` is at least 4.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin = max(0, size + start) if start < 0 else start if start <= size else 0
            file.seek(begin)
            data = file.read(most)
    except FileNotFoundError:
        return "", 0, 0
    cut = _continued(data) if start < 0 < begin else 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data[cut:])
    return text, begin + cut, begin + len(data) - len(decoder.getstate()[0])


def _continued(data: bytes) -> int:
    """How many bytes at the beginning belong to a character that has begun before."""
    return next((n for n, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), min(3, len(data)))
