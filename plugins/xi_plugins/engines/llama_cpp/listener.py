"""The HTTP listener that llama.cpp's server opens whether one wants it or not. Used by `engine.py` at load.

It gets a random key and, where there are Unix sockets and it isn't too long for one, a path in a folder of our own. Once the properties are
read over it and its loop is known to turn, the path is removed: nobody can connect any more, and nothing is left behind when the replica
is killed.
"""

from __future__ import annotations

import http.client
import os
import secrets
import socket
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from xi_core.errors import EngineError

_IPC = "ipc://"
_TIMEOUT = 10.0
_LONGEST_PATH = 100
"""Bytes; systems allow 104 to 108 in a Unix socket's address."""


class Listener:
    """Where llama.cpp is to listen. `close` shuts the door, as far as the system allows."""

    def __init__(self, endpoint: str) -> None:
        self._key = secrets.token_urlsafe(32)
        self._folder: Path | None = None
        beside = Path(endpoint.removeprefix(_IPC)).parent if endpoint.startswith(_IPC) else None
        base = beside if beside and beside.is_dir() else Path(tempfile.gettempdir())
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(base / "llama-12345678" / "s.sock")) <= _LONGEST_PATH:
            self._folder = Path(tempfile.mkdtemp(prefix="llama-", dir=base))

    def apply(self, params: Any) -> None:
        """Fill in the fields of a `CommonParams` that concern the listener."""
        params.api_keys = [self._key]
        host = str(self._folder / "s.sock") if self._folder else "127.0.0.1"
        if hasattr(params, "hostnames"):
            params.hostnames = [host]
        else:  # xllamacpp before October 2026
            params.hostname = host
        params.port = 0
        params.n_threads_http = 1
        params.cors_origins = ""
        params.endpoint_metrics = True  # `wait_for_loop`

    def properties(self, address: str) -> dict[str, Any]:
        """llama.cpp's `/props`. Raises `EngineError` when it doesn't answer."""
        try:
            found: dict[str, Any] = msgspec.json.decode(self._get(address, "/props"))
            return found
        except msgspec.DecodeError as error:
            raise EngineError(f"llama.cpp's listener tells the model's properties in no JSON: {error}") from None

    def wait_for_loop(self, address: str) -> None:
        """Return once llama.cpp's loop turns, which answers this and no other thread. Raises `EngineError` when it doesn't.

        A server that is let go before its loop has begun waits for the loop's end forever, and all of Python with it: the loop begins
        by forgetting that it was told to end.
        """
        self._get(address, "/metrics")

    def _get(self, address: str, path: str) -> bytes:
        connection = _Connection(address)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._key}"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != http.HTTPStatus.OK:
                raise EngineError(f"llama.cpp's listener answered {answer.status} when it was asked for {path}")
            return body
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"llama.cpp's listener can't be asked for {path}: {error}") from None
        finally:
            connection.close()

    def close(self) -> None:
        """Remove the socket's path. Idempotent."""
        if self._folder is None:
            return
        (self._folder / "s.sock").unlink(missing_ok=True)
        if self._folder.exists():
            os.rmdir(self._folder)


class _Connection(http.client.HTTPConnection):
    """HTTP to `unix://PATH` or `http://HOST:PORT`."""

    def __init__(self, address: str) -> None:
        scheme, _, place = address.partition("://")
        self._path = place if scheme == "unix" else None
        super().__init__("localhost" if self._path else place, timeout=_TIMEOUT)

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)
