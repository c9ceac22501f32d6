"""What llama.cpp writes to the process's standard error while it loads: the only place where it says why it failed. Used by `engine.py`.

A replica's standard error is the end of its log, and is read there: what is written just before llama.cpp aborts must not be lost.
Elsewhere it is collected in a file of its own, and written where it belongs afterwards.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_SHOWN = 2
_LINE = re.compile(r"^[\d.]+ E (?:\w+ +)?(?:[\w():~ ]+: )?(.*)$")
_GENERAL = re.compile(r"^(?:failed to (?:load model|create.context)|exiting due to|encountered an error while trying to fit)")


_LAST = b"exiting due to"  # how the last line of a load that failed begins
_LATE = 5.0  # seconds that it may come after the failure itself
_LOOK = 0.005  # seconds between two looks for it


class NativeLog:
    """Filled when the capture ends."""

    def __init__(self, descriptor: int, start: int = 0) -> None:
        """It is what follows `start`, in bytes, in the file of this descriptor."""
        self._descriptor, self._start = descriptor, start
        self.text = ""

    def wait_for_end(self, limit: float = _LATE) -> None:
        """Within the capture, after a failed load: a thread of llama.cpp writes its log and may be behind. At most `limit` seconds."""
        until = time.monotonic() + limit
        while _LAST not in self.read() and time.monotonic() < until:
            time.sleep(_LOOK)

    def read(self) -> bytes:
        """What was written so far; the place where writing goes on stays."""
        return os.pread(self._descriptor, max(0, os.fstat(self._descriptor).st_size - self._start), self._start)

    def reasons(self) -> str:
        """The first errors that say something particular, once each, as one sentence."""
        errors = [found[1].strip() for line in self.text.splitlines() if (found := _LINE.match(line))]
        particular = [error for error in dict.fromkeys(errors) if not _GENERAL.match(error)]
        return "; ".join(particular[:_SHOWN]) or "its log does not say why"


@contextmanager
def native_log() -> Iterator[NativeLog]:
    """Read what is written to descriptor 2."""
    sys.stderr.flush()
    reading = _opened_for_reading()
    with _collected() if reading is None else _read_in_place(reading) as log:
        yield log


def _opened_for_reading() -> int | None:
    """The file that descriptor 2 writes at the end of; None where it is none, or can't be read."""
    if not stat.S_ISREG(os.fstat(_STDERR).st_mode) or not fcntl.fcntl(_STDERR, fcntl.F_GETFL) & os.O_APPEND:
        return None
    try:
        return os.open(f"/proc/self/fd/{_STDERR}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


@contextmanager
def _read_in_place(descriptor: int) -> Iterator[NativeLog]:
    log = NativeLog(descriptor, os.fstat(descriptor).st_size)
    try:
        yield log
    finally:
        sys.stderr.flush()
        log.text = log.read().decode("utf-8", "replace")
        os.close(descriptor)


@contextmanager
def _collected() -> Iterator[NativeLog]:
    """Collect it apart, then write it to descriptor 2 after all."""
    saved = os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
        log = NativeLog(file.fileno())
        os.dup2(file.fileno(), _STDERR)
        try:
            yield log
        finally:
            sys.stderr.flush()
            os.dup2(saved, _STDERR)
            os.close(saved)
            data = log.read()
            log.text = data.decode("utf-8", "replace")
            _write_all(data)


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(_STDERR, data) :]
