"""`Child`: a server that runs as a process of its own, watched, its output passed on to the replica's log. Used by `child_server.py`.

It stays in this process's group, so that whoever kills the replica kills it too. What it starts itself is found by
a tag in the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from xi_core.process_end import how_ended

TAG = "XI_CHILD_ID"
_START = str(Path(__file__).with_name("child_start.py"))
_MOST_LINES = 2000
_LONGEST_LINE = 8192
_STDERR = 2
_ROUNDS = 20


class Child:
    """One process and what it starts. Make it on the loop of a thread that lives on: the kernel ties the process to that thread."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], secret: str, on_line: Callable[[str], None]) -> None:
        """`secret` is blotted out of the output; `on_line` is called with each line of it, on a thread. Raises `OSError`."""
        self.exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._tag = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._secret = secret.encode()
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        command = [sys.executable, "-I", "-S", _START, str(os.getpid()), *argv]
        self._process = subprocess.Popen(
            command, env={**env, TAG: self._tag}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.pid = self._process.pid
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
        return how_ended(self._process.returncode)

    async def stop(self, grace: float) -> None:
        """SIGTERM, SIGKILL after `grace` seconds, and SIGKILL to all that it has started."""
        if not self.exited.is_set():
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.exited.wait(), grace)
        if not self.exited.is_set():
            self._signal(signal.SIGKILL)
            await self.exited.wait()
        await self.sweep()

    async def sweep(self) -> None:
        """Kill what it has left behind."""
        await asyncio.to_thread(_kill_tagged, self._tag)
        await asyncio.to_thread(self._reader.join, 1.0)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _wait(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self.exited.set)

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


def _kill_tagged(tag: str) -> None:
    """SIGKILL to every process with this tag, until there is none. Linux only."""
    wanted = f"{TAG}={tag}".encode()
    for _ in range(_ROUNDS):
        found = [pid for pid in _pids() if wanted in _environment(pid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    except OSError:
        return []


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []
