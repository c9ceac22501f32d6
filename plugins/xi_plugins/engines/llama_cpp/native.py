"""What llama.cpp writes to the process's standard error while it loads: the only place where it says why it failed. Used by `engine.py`."""

from __future__ import annotations

import os
import re
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

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = ""

    def wait_for_end(self, limit: float = _LATE) -> None:
        """Within the capture, after a failed load: a thread of llama.cpp writes its log and may be behind. At most `limit` seconds."""
        until = time.monotonic() + limit
        while _LAST not in self.read() and time.monotonic() < until:
            time.sleep(_LOOK)

    def read(self) -> bytes:
        """What was written so far; the place where writing goes on stays."""
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def reasons(self) -> str:
        """The first errors that say something particular, once each, as one sentence."""
        errors = [found[1].strip() for line in self.text.splitlines() if (found := _LINE.match(line))]
        particular = [error for error in dict.fromkeys(errors) if not _GENERAL.match(error)]
        return "; ".join(particular[:_SHOWN]) or "its log does not say why"


@contextmanager
def native_log() -> Iterator[NativeLog]:
    """Collect what is written to descriptor 2, then write it there after all."""
    sys.stderr.flush()
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
