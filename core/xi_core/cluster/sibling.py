"""A sibling: one child of the launcher, its life line, its word that it is ready, and when to start it again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from xi_core.process_end import how_ended

BACKOFF_FIRST, BACKOFF_MOST = 0.2, 5.0
STEADY = 30.0
"""A sibling that ran for so many seconds begins its backoff anew."""
LONGEST_LINE = 65536
CONFIG_STATUS = 78
"""Exit status of a process that can't start as it is set up (EX_CONFIG of sysexits.h)."""


class Sibling:
    """One child process: `python -m MODULE … --watch-stdin`. `first` are arguments of its first start only."""

    def __init__(
        self, role: str, command: Sequence[str], *, secret: bool, first: Sequence[str] = (), pass_fds: tuple[int, ...] = ()
    ) -> None:
        """`secret`: whether it gets the API key."""
        self.role = role
        self.ready = False
        """Whether it has said so, in this life."""
        self.fresh = False
        """Whether it has said so since somebody looked."""
        self.stop_asked = False
        """Whether it has said that all are to stop, because somebody asked it to."""
        self.word: dict[str, object] = {}
        """What it said with it."""
        self.start_at: float | None = None
        """When to start it again."""
        self.deaths_in_row = 0
        self.end = ""
        """How its last life ended, in words."""
        self._command, self._first, self._pass_fds, self._secret = list(command), list(first), pass_fds, secret
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._heard = b""

    @property
    def pid(self) -> int:
        """Its process id; 0 before its first start."""
        return self._process.pid if self._process else 0

    @property
    def stdout(self) -> int:
        """The descriptor on which it says that it is ready."""
        if self._process is None or self._process.stdout is None:
            return -1
        return self._process.stdout.fileno()

    def start(self) -> None:
        """Spawn it, in a session of its own: Ctrl-C reaches the launcher only."""
        environment = {name: value for name, value in os.environ.items() if self._secret or name != "XI_API_KEY"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", *self._command, *self._first, "--watch-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            pass_fds=self._pass_fds,
            start_new_session=True,
        )
        self._first = []
        self.ready, self.start_at, self._heard = False, None, b""
        self._started_at = time.monotonic()

    def hear(self) -> bool:
        """Read what it says on stdout; False when that is closed."""
        data = os.read(self.stdout, 4096)
        *lines, rest = (self._heard + data).split(b"\n")
        self._heard = rest[-LONGEST_LINE:]
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):  # not a word for the launcher: a plugin printed something
                word = json.loads(line)
                if isinstance(word, dict) and word.get("role") == self.role:
                    if word.get("stop") is True:
                        self.stop_asked = True
                    else:
                        self.word, self.ready, self.fresh = word, True, True
        return bool(data)

    def mute(self) -> None:
        """Close this side of its stdout."""
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def runs(self) -> bool:
        """Whether it is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def hopeless(self) -> bool:
        """Whether it ended over a setting or plugin that another start won't change."""
        return self._process is not None and self._process.poll() == CONFIG_STATUS

    def has_ended(self) -> bool:
        """Whether it has died since somebody looked; then its next start is set."""
        if self._process is None or self.start_at is not None or self._process.poll() is None:
            return False
        if self._process.stdout is not None and not self._process.stdout.closed:
            return False  # its last words come first
        now = time.monotonic()
        self.ready = False
        self.deaths_in_row = 1 if now - self._started_at > STEADY else self.deaths_in_row + 1
        self.start_at = now + min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** (self.deaths_in_row - 1))
        self.end = how_ended(self._process.returncode)
        self._close_stdin()
        return True

    def due(self) -> bool:
        """Whether it is time to start it again."""
        return self.start_at is not None and time.monotonic() >= self.start_at

    def terminate(self) -> None:
        """Ask it to stop, and never start it again."""
        self.start_at = None
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """Make sure that it is gone."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._close_stdin()
        self.mute()
        self._process.wait()

    def _close_stdin(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
