"""The life line between a parent process and its child: when the parent dies, however it dies, the child ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies. Elsewhere nothing: `watch_stdin` is the portable way, this an extra."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os._exit(3)


def watch_stdin(on_eof: Callable[[], None], on_data: Callable[[bytes], None] = lambda data: None) -> None:
    """Call `on_eof` when standard input ends, and `on_data` with what comes before.

    A thread watches it and calls both, so that a busy loop delays nothing that kills a process.
    """

    def watch() -> None:
        while data := os.read(0, 4096):
            on_data(data)
        on_eof()

    threading.Thread(target=watch, name="life-line", daemon=True).start()
