"""A cheap load client: HTTP/1.1 with keep-alive over raw sockets, many connections on one loop. Parses only where an answer ends."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

_END = b"\r\n0\r\n\r\n"
"""How a chunked answer ends."""
_TOKEN = re.compile(rb'"(?:content|text)":\s*"[^"]')
TIMEOUT = 120.0
"""Seconds in which an answer must be whole."""


class BadAnswer(Exception):
    """A gateway answered something other than the stub behind it."""


class Connection(asyncio.Protocol):
    """One kept-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._wanted = 0
        self._chunked = False
        self._done: asyncio.Future[bytes] | None = None
        self.first_token = 0.0
        """When the last answer's first text came, by `time.perf_counter`; 0 before that."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(BadAnswer(f"the connection was closed in the middle of an answer: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if not self.first_token and _TOKEN.search(data):
            self.first_token = time.perf_counter()
        if not self._chunked and not self._wanted:
            self._read_head()
        if self._chunked:
            over = data.endswith(_END) or (len(data) < len(_END) and b"".join(self._parts[-len(_END) :]).endswith(_END))
        else:
            over = bool(self._wanted) and sum(map(len, self._parts)) >= self._wanted
        if over and self._done is not None and not self._done.done():
            self._done.set_result(b"".join(self._parts))

    async def ask(self, request: bytes) -> bytes:
        """The whole answer as it came, its head included. Raises `BadAnswer`, `TimeoutError`."""
        if self._transport is None:
            raise BadAnswer("not connected")
        self._parts, self._wanted, self._chunked, self.first_token = [], 0, False, 0.0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(TIMEOUT):
            answer = await self._done
        if not answer.startswith(b"HTTP/1.1 200"):
            raise BadAnswer(answer[:1000].decode(errors="replace"))
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def _read_head(self) -> None:
        head, ended, _ = b"".join(self._parts).partition(b"\r\n\r\n")
        if not ended:
            return
        for line in head.lower().split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name == b"content-length":
                self._wanted = len(head) + 4 + int(value)
            elif name == b"transfer-encoding":
                self._chunked = True


class Client:
    """`count` connections to the server at `url`."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    @classmethod
    async def to(cls, url: str, count: int) -> Client:
        """Connect."""
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(Connection, address.hostname or "127.0.0.1", address.port or 80) for _ in range(count)]
        return cls([connection for _, connection in made])

    async def at_once(self, requests: Sequence[bytes]) -> list[bytes]:
        """One request on each connection, all at the same time."""
        return await asyncio.gather(*(connection.ask(request) for connection, request in zip(self._connections, requests, strict=True)))

    @property
    def first_tokens(self) -> list[float]:
        """When the first text of each connection's last answer came, by `time.perf_counter`."""
        return [connection.first_token for connection in self._connections]

    async def in_turn(self, request: bytes, count: int) -> list[bytes]:
        """`count` times the same request; each connection sends its next one when it has its answer."""
        left, answers = count, []

        async def work(connection: Connection) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                answers.append(await connection.ask(request))

        await asyncio.gather(*map(work, self._connections))
        return answers

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in self._connections:
            connection.close()
