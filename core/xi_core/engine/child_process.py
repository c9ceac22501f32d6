"""`Child`: a server that runs as a process of its own, watched, its output passed on to the replica's log. Used by `child_server.py`.

It is started by a process of `child_start.py`, which kills all that the server leaves behind, and the server too when this process dies.
The server stays in this process's group, so that whoever kills the replica's kills it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from xi_core.engine import child_start
from xi_core.process_end import how_ended

_MOST_LINES = 2000
_LONGEST_LINE = 8192
_STDERR = 2
_SWEPT = 10.0
"""Longest wait for the end of processes that were killed: one that a device holds may stay for long."""


class Child:
    """One process and what it starts. Make it on a loop."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], secret: str, on_line: Callable[[str], None]) -> None:
        """`secret` is blotted out of the output; `on_line` is called with each line of it, on a thread. Raises `OSError`."""
        self.pid = 0
        """The server's, once it is known, which takes some milliseconds."""
        self.exited = asyncio.Event()
        """The server has; what it started may live for a moment."""
        self._swept = asyncio.Event()
        self._returncode: int | None = None
        self._loop = asyncio.get_running_loop()
        self._secret = secret.encode()
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._link, theirs = socket.socketpair()
        command = [sys.executable, "-I", "-S", child_start.__file__]
        tagless = {name: value for name, value in env.items() if name != child_start.TAG}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command, env=tagless, stdin=theirs.fileno(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            except OSError:
                self._link.close()
                raise
        self._say(child_start.packed(env.get(child_start.TAG, ""), argv))
        self._reader = threading.Thread(target=self._read, name="child-output", daemon=True)
        self._reader.start()
        self._waiter = threading.Thread(target=self._wait, name="child-exit", daemon=True)
        self._waiter.start()

    @property
    def lines(self) -> list[str]:
        """What it wrote last, oldest first."""
        return list(self._lines)

    def how(self) -> str:
        """How it ended, in words."""
        return how_ended(self._returncode)

    async def stop(self, grace: float) -> None:
        """SIGTERM, SIGKILL after `grace` seconds, and SIGKILL to all that it has started."""
        if not self.exited.is_set():
            self._say(b"\0")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.exited.wait(), grace)
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)
            self._process.send_signal(signal.SIGCONT)  # for who stopped the server may have stopped all of them
        await self.exited.wait()
        await self.sweep()

    async def sweep(self) -> None:
        """Once it has exited: wait until all that it has started is dead, too, and its output read."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._swept.wait(), _SWEPT)

    def _say(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody listens, which `_wait` notices
            self._link.sendall(data)

    def _wait(self) -> None:
        said = b""
        with contextlib.suppress(OSError), self._link.makefile("rb") as words:
            self.pid = int(words.readline() or 0)
            said = words.readline()
        if not said:  # it was killed, and the server with it
            self._process.wait()
        self._returncode = int(said) if said else self._process.returncode
        self._tell(self.exited)
        self._process.wait()
        self._reader.join(1.0)
        self._link.close()
        self._tell(self._swept)

    def _tell(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(event.set)

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with pipe:
            while line := pipe.readline(_LONGEST_LINE):
                line = line.replace(self._secret, b"***")
                _write(line)
                text = line.decode("utf-8", "replace").rstrip()
                self._lines.append(text)
                self._on_line(text)


def _write(data: bytes) -> None:
    """To this process's standard error, which is the replica's log."""
    try:
        while data:
            data = data[os.write(_STDERR, data) :]
    except OSError:  # a full disk must not stop the child by a full pipe
        return
