"""The file of a local listening socket: taken only from the dead, removed only while it is ours. Used by the `zmq` transport."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from xi_core.errors import TransportError


class SocketFile:
    """A listening local socket and its file, which is removed only while it is still ours."""

    def __init__(self, path: str) -> None:
        """Raises `TransportError` if a live process listens there or the path can't be used. The file of a dead process is replaced."""
        self._path = Path(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not self._try_bind():
                self._path.unlink(missing_ok=True)
                self._socket.bind(path)
            self._socket.listen(512)
            self._socket.setblocking(False)
            self._id = _file_id(self._path)
        except OSError as error:
            self._socket.close()
            raise TransportError(f"can't listen at ipc://{path}: {error.strerror or error}") from None
        except TransportError:
            self._socket.close()
            raise

    def detach(self) -> int:
        """The descriptor, which from now on belongs to who asked for it."""
        return self._socket.detach()

    def remove(self) -> None:
        """Remove the file, unless it is gone or another's."""
        if _file_id(self._path) == self._id:
            self._path.unlink(missing_ok=True)

    def _try_bind(self) -> bool:
        """Whether it is bound; False where a dead process has left its file."""
        try:
            self._socket.bind(str(self._path))
        except OSError:
            if not self._path.exists():
                raise
        else:
            return True
        if not stat.S_ISSOCK(self._path.stat().st_mode):
            raise TransportError(f"can't listen at ipc://{self._path}: a file is there that is no socket; remove it or choose another path")
        if _answers(self._path):
            raise TransportError(f"can't listen at ipc://{self._path}: another process listens there; stop it or choose another path")
        return False


def _answers(path: Path) -> bool:
    """Whether somebody listens at a local socket's path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # somebody is there, too busy to answer
        return True


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
