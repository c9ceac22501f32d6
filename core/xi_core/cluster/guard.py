"""The worker's side of its keeper: starts it, tells it the process groups, and starts it again should it die."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys

from xi_core.cluster import keeper

log = logging.getLogger(__name__)


class Guard:
    """A running keeper and the list that it holds. Used on the worker's main thread."""

    def __init__(self) -> None:
        self._groups: dict[int, str] = {}
        self._process = self._spawn()

    @property
    def pid(self) -> int:
        """The keeper's process id."""
        return self._process.pid

    def add(self, group: int, tag: str) -> None:
        """From now on this process group dies with the worker, and so does what carries `tag`."""
        self._groups[group] = tag
        self._say(f"+{group} {tag}\n")

    def drop(self, group: int) -> None:
        """This process group is gone."""
        if self._groups.pop(group, None) is not None:
            self._say(f"-{group}\n")

    def restart_if_dead(self) -> bool:
        """Replace a keeper that has died and tell the new one the list; whether that was so. To be asked again where none could be made."""
        if self._process.poll() is None:
            return False
        log.warning("keeper %d has died; starting another", self._process.pid)
        self._hang_up()
        try:
            self._process = self._spawn()
        except OSError as error:  # the machine is out of memory or process numbers now
            log.error("no keeper can be started, trying on: %s", error)
            return False
        for group, tag in self._groups.items():
            self._say(f"+{group} {tag}\n")
        return True

    def close(self) -> None:
        """End the keeper; it kills what is still on the list."""
        self._hang_up()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/" if os.name == "posix" else None,
        )

    def _say(self, line: str) -> None:
        pipe = self._process.stdin
        # A dead keeper is noticed by `restart_if_dead`, which tells its successor everything; a closed one has done its task.
        with contextlib.suppress(OSError):
            if pipe is not None and not pipe.closed:
                os.write(pipe.fileno(), line.encode())

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
