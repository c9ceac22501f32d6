"""HTTP/1.1 to a child's server over asyncio: one request per connection, its answer read as it streams. Used by `child_server.py` only.

Written out because a replica imports no HTTP library, and because a token should cost microseconds: bytes go from the socket through two
incremental readers to a callback, without a task or a future per event.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import cast

from msgspec import Struct

LARGEST_HEAD = 64 * 1024
LARGEST_BODY = 32 * 1024 * 1024
_CHUNK_SIZE = re.compile(rb"^[0-9a-fA-F]{1,8}$")
_EVENTS = "text/event-stream"
DONE = b"[DONE]"


class BadAnswer(Exception):
    """What came is no HTTP/1.1, is too large, or was cut off."""


class Place(Struct, kw_only=True, frozen=True):
    """Where a child's server listens: a Unix socket, or a port of loopback."""

    socket: str | None = None
    port: int = 0


class Reply(Struct, kw_only=True):
    """A finished answer. `body` is empty where it was a stream of events."""

    status: int
    body: bytes = b""


class ResponseReader:
    """One response, fed as it comes. `status` and `headers` (names in lower case) are there once `feed` has seen the head."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self._buffer = bytearray()
        self._left: int | None = None
        self._chunked = False

    def feed(self, data: bytes) -> bytes:
        """The part of the body that `data` brought. Raises `BadAnswer`."""
        if self._chunked and not self._buffer and (whole := _whole_chunk(data)):
            return whole
        self._buffer += data
        if self.status == 0 and not self._read_head():
            return b""
        return self._read_chunks() if self._chunked else self._read_plain()

    def end(self) -> None:
        """The connection is closed. Raises `BadAnswer` where that comes too early."""
        if self.status and not self._chunked and self._left is None:
            self.complete = True
        if not self.complete:
            raise BadAnswer(
                "the connection was closed in the middle of the answer" if self.status else "the connection was closed unanswered"
            )

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > LARGEST_HEAD:
            if len(self._buffer) > LARGEST_HEAD:
                raise BadAnswer("the head of the answer has no end")
            return False
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit()):
            raise BadAnswer(f"no HTTP answer but '{first[:80]}'")
        if code.startswith("1"):  # an interim answer; the real one follows
            return self._read_head()
        self.headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        self._left = self._length()
        self.status = int(code)
        return True

    def _length(self) -> int | None:
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()) or int(text) > LARGEST_BODY:
            raise BadAnswer(f"an answer with a content-length of '{text[:40]}'")
        return int(text)

    def _read_plain(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
            self.complete = self._left == 0
        return data

    def _read_chunks(self) -> bytes:
        buffer, found = self._buffer, []
        while not self.complete:
            line = buffer.find(b"\r\n", 0, 256)
            if line < 0:
                if len(buffer) >= 256:
                    raise BadAnswer("a chunk without a size")
                break
            text = bytes(buffer[:line]).partition(b";")[0].strip()
            if not _CHUNK_SIZE.match(text) or (size := int(text, 16)) > LARGEST_BODY:
                raise BadAnswer("a chunk with a size that can't be")
            start, end = line + 2, line + 2 + size
            if size == 0:
                self.complete = buffer.find(b"\r\n\r\n", line) >= 0
                break
            if len(buffer) < end + 2:
                break
            found.append(bytes(buffer[start:end]))
            del buffer[: end + 2]
        return b"".join(found)


def _whole_chunk(data: bytes) -> bytes:
    """What is in `data` where it is one chunk, as it mostly is with a token in it; empty where it isn't."""
    line, _, rest = data.partition(b"\r\n")
    if _CHUNK_SIZE.match(line) and len(rest) == int(line, 16) + 2 and rest.endswith(b"\r\n"):
        return rest[:-2]
    return b""


class EventReader:
    """Server-sent events: from pieces of a body to the data of whole events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now; comments are left out. Raises `BadAnswer` for one without an end."""
        if not self._rest and data.startswith(b"data: ") and data.endswith(b"\n\n") and data.find(b"\n") == len(data) - 2:
            return [data[6:-2]]  # one event of one line, as most are
        *events, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._rest) > LARGEST_BODY:
            raise BadAnswer("an event without an end")
        return [found for event in events if (found := _data_of(event))]


def _data_of(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)


class Exchange(asyncio.Protocol):
    """One request and its answer. Events go to `on_event` as they come; `reply` is answered at the end."""

    def __init__(self, request: bytes, on_event: Callable[[bytes], None]) -> None:
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        """Raises `BadAnswer`."""
        self._request = request
        self._on_event = on_event
        self._response = ResponseReader()
        self._events: EventReader | None = None
        self._body = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.reply.done():
            return
        try:
            self._take(self._response.feed(data))
        except BadAnswer as error:
            self._end(error)
        else:
            if self._response.complete:
                self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.reply.done():
            return
        try:
            self._response.end()
        except BadAnswer as error:
            self._end(error)
        else:
            self._end(None)

    def close(self) -> None:
        """Hang up, which ends the request in the server. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self, body: bytes) -> None:
        response = self._response
        if self._events is None and response.status == 200 and response.headers.get("content-type", "").startswith(_EVENTS):
            self._events = EventReader()
        if self._events is None:
            self._body += body
            if len(self._body) > LARGEST_BODY:
                raise BadAnswer("an answer that is too large")
            return
        for event in self._events.feed(body):
            if event == DONE:
                response.complete = True
                return
            self._on_event(event)

    def _end(self, error: BadAnswer | None) -> None:
        if not self.reply.done():
            if error is None:
                self.reply.set_result(Reply(status=self._response.status, body=bytes(self._body)))
            else:
                self.reply.set_exception(error)
        self.close()


def encode(method: str, path: str, key: str, body: bytes = b"") -> bytes:
    """A request as bytes. The connection ends with the answer."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}", "Connection: close"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def ask(place: Place, request: bytes, on_event: Callable[[bytes], None]) -> Reply:
    """Send `request` to the server at `place`. Raises `OSError` where nothing listens, and `BadAnswer`. Cancelling it hangs up."""
    exchange = Exchange(request, on_event)
    loop = asyncio.get_running_loop()
    try:
        if place.socket is not None:
            await loop.create_unix_connection(lambda: exchange, place.socket)
        else:
            await loop.create_connection(lambda: exchange, "127.0.0.1", place.port)
        return await exchange.reply
    finally:
        exchange.close()
        with contextlib.suppress(BadAnswer, asyncio.CancelledError):
            _ = exchange.reply.done() and exchange.reply.exception()  # read, so that asyncio doesn't complain of it
