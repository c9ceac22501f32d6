"""Calls of an ASGI application, as a server makes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Call:
    """One request to an ASGI application, driven by the test."""

    path: str = "/v1/chat/completions"
    body: bytes | None = None
    method: str = "POST"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    query: bytes = b""
    stalled: bool = False
    """The client doesn't read: each send of a body waits."""
    direct: Callable[[Call], Callable[[bytes], bool]] | None = None
    """The server's own way to write a chunk, as `xi_server.connection` offers it."""

    def __post_init__(self) -> None:
        self.status = 0
        self.answer_headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.whole = False
        self.left = asyncio.Event()
        self.reading = asyncio.Event()
        self.sent_body = False
        self.aborted = False
        if not self.stalled:
            self.reading.set()

    def start(self, app: Any) -> asyncio.Task[None]:
        scope: dict[str, Any] = {
            "type": "http", "http_version": "1.1", "method": self.method, "path": self.path, "raw_path": self.path.encode(), "scheme": "http",
            "query_string": self.query, "headers": self.headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 9997), "root_path": "",
            "state": {"abort": self._abort},
        }  # fmt: skip
        direct = self.direct
        if direct is not None:
            scope["state"]["direct"] = lambda: direct(self)
        self.state: dict[str, Any] = scope["state"]
        self.task = asyncio.create_task(app(scope, self._receive, self._send))
        return self.task

    async def run(self, app: Any) -> Call:
        async with asyncio.timeout(10):
            await self.start(app)
        return self

    def leave(self) -> None:
        """Close the connection."""
        self.left.set()

    @property
    def body_text(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body_text)

    @property
    def error(self) -> Any:
        return self.json["error"]

    def _abort(self) -> None:
        self.aborted = True
        self.left.set()

    async def _receive(self) -> dict[str, Any]:
        if not self.sent_body:
            self.sent_body = True
            return {"type": "http.request", "body": self.body or b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and not self.reading.is_set():
            left, reads = asyncio.create_task(self.left.wait()), asyncio.create_task(self.reading.wait())
            await asyncio.wait([left, reads], return_when=asyncio.FIRST_COMPLETED)
            left.cancel(), reads.cancel()
        if self.left.is_set():
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.answer_headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.parts.append(message.get("body", b""))
            self.whole = not message.get("more_body", False)


def chat(model: str = "m", **fields: Any) -> bytes:
    """The body of a chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}).encode()


def control(method: str, path: str, body: Any = None, query: bytes = b"") -> Call:
    """A call of the control API."""
    return Call(path=path, method=method, body=None if body is None else json.dumps(body).encode(), query=query)
