"""A client's connection: uvicorn's HTTP protocol, and the bounds that it lacks. All that leans on the insides of that protocol is in here.

httptools keeps a head that doesn't end, uvicorn any number of requests that stand behind one another, and a transport that is being closed
what nobody reads. So whoever can connect, with or without a key, could take all of the gateway's memory and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xi_core.errors import ErrorBody, Overloaded, envelope

KEEP_ALIVE = 150
"""Seconds that a connection is kept which is idle, or whose next head doesn't come whole: longer than the pools of clients keep theirs."""
MOST_HEAD = 64 * 1024
"""Bytes that may come without ending a head or belonging to a body: an unfinished head, or what follows a body in chunks."""
MOST_PIPELINED = 64
"""Requests of one connection that may wait for the answer to another."""
UPLOAD_TIMEOUT = 60.0
"""Seconds in which a request's body must have come."""
LOOK = 1.0
"""Seconds between looks at each connection."""
UNSENT = 256 * 1024
"""Bytes that the system takes of us beyond what is on its way. It would take 4 MB, and say that there is room when a third of them is gone:
who reads slowly would seem to read nothing for minutes. A bound on its whole buffer would slow down distant clients on good lines."""
NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Base

    from xi_server.plain_parser import PlainParser
else:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Base

        from xi_server.plain_parser import PlainParser
    except ImportError:  # httptools isn't installed
        from uvicorn.protocols.http.h11_impl import H11Protocol as Base

        PlainParser = None  # h11 declines upgrades by itself, and bounds heads and what is pipelined


class Connection(Base):
    """uvicorn's HTTP protocol. Requests find in their `state` two things that ASGI has no word for, and may leave a third there.

    `abort()` cuts the connection off. `direct()` gives, after the response has started, a function that writes one chunk at once and
    returns False if the client doesn't read; or None where chunks are not written that way. `drop(why)` is theirs: it is called where
    their client is to be cut off.
    """

    pipeline: Any = ()  # h11's has none
    _late: asyncio.TimerHandle | None = None
    """Closes the connection, where no request is in work and part of a head may be there."""
    _working: Any = None
    """The request that is answered now. `cycle` is the one that came last."""
    _fruitless = 0
    """Bytes that came since the last head was whole, or since the last piece of a body."""
    _seen: Any = None
    _held = _stuck = _uploading = 0
    """What the last looks have found: bytes to be written, and for how many looks nothing has moved, out or in."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if PlainParser is not None:
            self.parser = PlainParser(self)
        self.app_state = {**self.app_state, "abort": self.cut_off, "direct": self._direct}
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # it is lost already, or this system knows only the name
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        self._fruitless += len(data)
        super().data_received(data)
        if self._fruitless > MOST_HEAD and PlainParser is not None:
            self._refuse_head()
        served = self.cycle is not None and not self.cycle.response_complete
        if self._late is None:
            if not served:
                self._expect_head()
        elif served:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._late is not None:
            self._late.cancel()
        working = self._working
        if working is not None and working is not self.cycle:  # uvicorn tells the request that came last
            working.disconnected = True
            working.message_event.set()

    def on_headers_complete(self) -> None:
        self._fruitless = 0
        if len(self.pipeline) >= MOST_PIPELINED:
            raise Overloaded("too many requests wait on this connection")  # ends the parser's work, and so the connection
        super().on_headers_complete()
        if self.pipeline:
            self._working.message_event.set()  # uvicorn has stopped to read: who waits for the client's end has to ask for it again
        else:
            self._working = self.cycle
        if self.scope["http_version"] < "1.1":  # has no chunks: the end of the connection ends the answer
            self.cycle.keep_alive = self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = UNTOLD

    def on_body(self, body: bytes) -> None:
        self._fruitless = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._working = self.pipeline[-1][0]
        super().on_response_complete()
        if self.pipeline:  # uvicorn has gone back to reading
            self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        if self._within_answer():
            self.cut_off()
        else:
            super().send_400_response(msg)

    def cut_off(self) -> None:
        """Close at once. The system forgets what it has still to send, which it would otherwise offer for minutes to who reads nothing."""
        with contextlib.suppress(OSError, RuntimeError):  # it is closed already
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.transport.abort()

    def look(self, stall: float) -> str:
        """Called every `LOOK` seconds. Why the client is to be cut off: it has taken nothing for `stall` seconds, or its body doesn't come.

        Looks are counted, not seconds: this process may itself have stood still.
        """
        held, cycle = self.transport.get_write_buffer_size(), self.cycle
        self._stuck = self._stuck + 1 if held and held == self._held else 0
        uploading = cycle is not None and cycle.more_body and not cycle.response_complete and not self.pipeline
        if uploading and cycle.waiting_for_100_continue:  # the client waits for us, and nobody for the body
            uploading = False
        self._uploading = self._uploading + 1 if uploading and cycle is self._seen else 0
        self._held, self._seen = held, cycle
        if self._stuck * LOOK >= stall:
            return f"it has read nothing for {stall:g} s"
        if self._uploading * LOOK >= UPLOAD_TIMEOUT:
            return f"its request has not come in whole within {UPLOAD_TIMEOUT:g} s"
        return ""

    def drop(self, why: str) -> bool:
        """Have the request in work end itself and the connection, with its own name for it. False where none can."""
        working = self._working
        drop = None if working is None or working.response_complete else working.scope["state"].get("drop")
        if drop is not None:
            drop(why)
        return drop is not None

    def _expect_head(self) -> None:
        """uvicorn bounds the time between two requests, but not the time before the first one, nor that in which a head comes."""
        self._late = self.loop.call_later(KEEP_ALIVE, self.transport.close)

    def _refuse_head(self) -> None:
        if self._within_answer():
            self.cut_off()
        elif not self.transport.is_closing():
            self.transport.write(HEAD_REFUSED)
            self.transport.close()

    def _within_answer(self) -> bool:
        """Whether what is written now would stand in the middle of an answer, or before one that comes first."""
        working = self._working
        return bool(self.pipeline) or (working is not None and working.response_started and not working.response_complete)

    def _direct(self) -> Callable[[bytes], bool] | None:
        cycle, flow, write = self._working, self.flow, self.transport.write
        if getattr(cycle, "chunked_encoding", None) is not True:  # another version of uvicorn, h11, or HTTP/1.0
            return None

        def write_chunk(data: bytes) -> bool:
            if flow.write_paused or cycle.disconnected or not data:
                return False
            write(b"%x\r\n%b\r\n" % (len(data), data))
            return True

        return write_chunk


class _Untold(int):
    """The length of an answer that ends with its connection, as uvicorn reckons with it: always enough, and nothing is ever missing."""

    def __lt__(self, other: object) -> bool:
        return False

    def __sub__(self, other: object) -> _Untold:
        return self


UNTOLD = _Untold(0)


def _head_refused() -> bytes:
    text = f"the request's head is over the limit of {MOST_HEAD} bytes; send fewer or shorter headers"
    code = "request_header_fields_too_large"
    body = envelope(ErrorBody(message=text, type="invalid_request_error", code=code, status=431))
    head = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(body), body)


HEAD_REFUSED = _head_refused()
