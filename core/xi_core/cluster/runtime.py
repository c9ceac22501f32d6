"""The runtime folder of one launcher: sockets live there. Private to the user, short in its path, gone with its launcher."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from xi_core.errors import ConfigError

PREFIX = "xi-"
LOCK = "lock"
LONGEST = 75
"""Most bytes of a folder's path. Systems take 103 for a socket's path; the names of ours have up to 27."""
FALLBACK = "/tmp"  # noqa: S108 - the folder made in it is private
"""Where the folder is when the path of the temporary directory is too long."""


class RuntimeFolder:
    """A folder of mode 0700 with a lock that is held as long as its launcher lives."""

    def __init__(self) -> None:
        """Raises `ConfigError` where there is no place for one."""
        try:
            while not self._made():
                continue
        except OSError as error:
            raise ConfigError(
                f"no folder for sockets could be made: {error.strerror or error}; set TMPDIR to a directory that can be written"
            ) from None

    def _made(self) -> bool:
        """Make and lock it; False where another launcher's sweep came in between."""
        self.path = _new()
        self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if (self.path / LOCK).exists():
            return True
        os.close(self._lock)
        return False

    def remove(self) -> None:
        """Delete it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep() -> None:
    """Delete the folders of this user's dead launchers: those whose lock nobody holds."""
    with contextlib.suppress(OSError):
        for place in {tempfile.gettempdir(), FALLBACK}:
            for path in Path(place).glob(f"{PREFIX}[0-9]*-*"):
                with contextlib.suppress(OSError):
                    if not path.is_symlink() and path.stat().st_uid == os.getuid():
                        _remove_if_dead(path)


def _new() -> Path:
    """A new folder, in the first place where its sockets' paths aren't too long."""
    prefix = f"{PREFIX}{os.getpid()}-"
    for place in (tempfile.gettempdir(), FALLBACK):
        if len(os.fsencode(place)) + len(prefix) + 10 <= LONGEST and os.path.isdir(place):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    raise ConfigError(f"the temporary directory {tempfile.gettempdir()} is too long a path for sockets; set TMPDIR to a shorter one")


def _remove_if_dead(path: Path) -> None:
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
