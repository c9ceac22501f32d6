"""Where a child's server is to listen, its key, and a private folder for it. Made by `child_server.py`, read by its subclasses."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from xi_core.engine.child_http import Place, Reply, ask, encode
from xi_core.local_ports import ephemeral

PORTS = range(10_000, 19_000)
"""Where a port is looked for first, but for what the system gives to outgoing connections: it might give the port away meanwhile. They end
well below those of `XI_PORT_RANGE`, for some servers count on from theirs."""
TRIES = 64
_IPC = "ipc://"
_LONGEST_PATH = 100
"""Characters; systems allow 104 to 108 in a Unix socket's address."""


class Address(Struct, kw_only=True, frozen=True):
    """`socket` is a path where the server listens on a Unix socket, else `port` is a free port of 127.0.0.1."""

    key: str
    """Random; the server must refuse requests without it."""
    folder: str
    """Of this launch only, mode 0700, gone after it: for files that the server is to read."""
    socket: str | None = None
    port: int = 0

    @property
    def place(self) -> Place:
        """Where to connect."""
        return Place(socket=self.socket, port=self.port)

    async def ask(self, method: str, path: str, body: bytes = b"", on_event: Callable[[bytes], None] | None = None) -> Reply:
        """Ask the server. Raises `OSError` where nothing listens, `BadAnswer` where that is no HTTP. Cancelling it hangs up."""
        return await ask(self.place, encode(method, path, self.key, body), on_event or _ignore)

    @classmethod
    def make(cls, endpoint: str, *, unix_socket: bool) -> Address:
        """An address beside the replica's own `endpoint`, or among the temporary files."""
        beside = os.path.dirname(endpoint.removeprefix(_IPC)) if endpoint.startswith(_IPC) else ""
        fits = bool(beside) and os.path.isdir(beside) and len(beside) < _LONGEST_PATH - 24
        folder = tempfile.mkdtemp(prefix="child-", dir=beside if fits else None)
        key = secrets.token_urlsafe(32)
        path = os.path.join(folder, "s.sock")
        if unix_socket and hasattr(socket, "AF_UNIX") and len(path) <= _LONGEST_PATH:
            return cls(key=key, folder=folder, socket=path)
        return cls(key=key, folder=folder, port=_free_port())

    def write(self, name: str, text: str) -> str:
        """A file of the folder, readable by this user only; its path."""
        path = Path(self.folder) / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        return str(path)

    def remove(self) -> None:
        """Remove the folder. Idempotent."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _ignore(data: bytes) -> None:
    """Events of an answer that nobody reads."""


def _free_port() -> int:
    """A port that is free and likely to stay so: the server binds it when it has loaded the model, minutes later."""
    given = ephemeral()
    kept = [port for port in PORTS if port not in given]
    for port in random.sample(kept, min(len(kept), TRIES)):
        with contextlib.suppress(OSError):
            return _bound(port)
    return _bound(0)


def _bound(port: int) -> int:
    """The port, or any for 0, where it can be bound. Raises `OSError`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return int(probe.getsockname()[1])
