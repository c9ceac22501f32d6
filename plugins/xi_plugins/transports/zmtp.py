"""The dialling side of the `zmq` transport on local sockets: ZeroMQ's wire protocol, spoken straight from the event loop.

The other side is a ROUTER socket of ZeroMQ itself. There is no thread between the loop and the socket here: a message costs one read,
and the end of a connection is seen at once.

* The socket is read and written here, not by an asyncio transport. So what came before the end is handed over even if a send finds
  the end first; and a send goes to the kernel at once, with an exact count of what waits.
* One `recv` of at most `CHUNK` bytes per round of the loop, and all that is whole in it handed over. So the loop is not starved: real
  messages are some hundred bytes, and a chunk holds a few hundred of them.
* A connection whose other side ended without reading all is reset. uvloop calls a reader once more then and never again, though there
  may be more to read, and the end itself. So an `epoll` of its own watches for that, which a message doesn't wake.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import select
import socket
import sys
from collections import deque
from collections.abc import Callable

from xi_core.errors import ChannelClosed, ChannelFull, TransportError
from xi_core.transport.base import NO_PULSE, Channel
from xi_plugins.transports.zmtp_frames import (
    COMMAND,
    GREETING,
    MAX_MESSAGE,
    MORE,
    PING,
    FrameReader,
    Handshake,
    error_reason,
    message_frame,
    only_message,
    pong,
    read_command,
)

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 2.0
"""Seconds in which a connection must stand."""
RETRY = 0.05
"""Seconds between attempts to connect."""
CHUNK = 64 * 1024
"""Bytes read in one callback of the loop."""
MAX_UNSENT = MAX_MESSAGE
"""Bytes that may wait to be sent; a single message may be this large."""
SMALL = 4096
"""Bytes of a frame that may wait however many bytes do: pings and aborts have room behind large requests."""

_HOPELESS = (None, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE)
"""Reasons for not even trying again. None: Python itself finds that the path is too long."""


class ZmtpChannel(Channel):
    """A DEALER socket that dials `ipc://PATH`. What can't be sent at once waits here, bounded in messages, and large ones in bytes."""

    def __init__(self, endpoint: str, on_message: Callable[[bytes], None], on_lost: Callable[[], None], high_water: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoint = endpoint
        self._path = endpoint.removeprefix("ipc://")
        self._on_message = on_message
        self._on_lost = on_lost
        self._high_water = high_water
        self._open = False
        self._ending = False
        """Nothing more is accepted."""
        self._closed = False
        self._unsent: deque[bytes | memoryview] = deque()
        self._unsent_bytes = 0
        self._writing = False
        self._sent = asyncio.Event()
        """Nothing waits, or nothing will be sent any more."""
        self._sock: socket.socket | None = None
        self._ends: select.epoll | None = None
        self._handshake = Handshake()
        self._frames = FrameReader()
        self._partial = self._frames.held
        self._missed_beats = 0
        """PINGs since the last PONG."""
        self._retry: asyncio.TimerHandle | None = None
        if not self._path or "\0" in self._path:
            raise TransportError(f"can't dial {endpoint}: it names no file")
        try:
            self._dial()
        except OSError as error:
            if error.errno in _HOPELESS:
                raise TransportError(f"can't dial {endpoint}: {error.strerror or error}") from None
            self._dial_later()
        self._deadline = self._loop.call_later(CONNECT_TIMEOUT, self._lose)

    def send(self, message: bytes) -> None:
        if len(message) > MAX_MESSAGE:
            raise TransportError(f"a message of {len(message)} bytes is over the limit of {MAX_MESSAGE}")
        if self._ending:
            raise ChannelClosed(f"the channel to {self._endpoint} is closed")
        self._put(message_frame(message))

    def missed_beats(self) -> int:
        if not self._open:
            return NO_PULSE
        missed = self._missed_beats
        self._missed_beats += 1
        with contextlib.suppress(ChannelFull, ChannelClosed):  # what can't be asked is not answered
            self._put(PING)
        return missed

    async def close(self, grace: float = 1.0) -> None:
        if self._closed:
            return
        self._ending, self._on_message, self._on_lost = True, _drop, _nothing
        try:
            if self._unsent:
                async with asyncio.timeout(grace):
                    await self._sent.wait()
        except TimeoutError:
            log.debug("%s: %d messages were not sent in time", self._endpoint, len(self._unsent))
        finally:
            self._shut()

    def abort(self) -> None:
        self._shut()

    # ---- connecting ----------------------------------------------------------------------------

    def _dial(self) -> None:
        """Raises OSError where nobody listens, now."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(self._path)  # a local socket connects at once or not at all
            sock.send(GREETING)  # a fresh socket has room for it, and for READY later
            self._ends = _ends_of(sock)
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self._handshake = Handshake()
        self._read_by(self._shake_hands)

    def _dial_later(self) -> None:
        self._retry = self._loop.call_later(RETRY, self._dial_again)

    def _dial_again(self) -> None:
        try:
            self._dial()
        except OSError:
            self._dial_later()

    def _shake_hands(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(CHUNK)
            answer = self._handshake.feed(data)
            if answer:
                self._sock.send(answer)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        except TransportError as error:
            self._fail(error)
            return
        if not data:  # it went away before the connection stood, so nothing was sent and another may take its place
            self._drop_socket()
            self._dial_later()
        elif self._handshake.done:
            self._connected()

    def _connected(self) -> None:
        assert self._sock is not None
        self._open = True
        self._deadline.cancel()
        self._recv = self._sock.recv
        self._read_by(self._read)
        self._flush()
        if self._handshake.rest:
            self._take(self._handshake.rest)

    # ---- receiving -----------------------------------------------------------------------------

    def _read_by(self, read: Callable[[], None]) -> None:
        """Read with this when there is something, and until the end is found once there is one."""
        assert self._sock is not None
        self._loop.add_reader(self._sock.fileno(), read)
        if self._ends is not None:
            self._loop.add_reader(self._ends.fileno(), read)

    def _read(self) -> None:
        try:
            data = self._recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:  # the connection was reset, and all that came before has been read
            data = b""
        if not self._partial:
            message = only_message(data)
            if message is not None:
                self._on_message(message)
                return
        if data:
            self._take(data)
        else:
            self._lose()

    def _take(self, data: bytes) -> None:
        try:
            for flags, body in self._frames.feed(data):
                if flags & COMMAND:
                    self._obey(body)
                elif not flags & MORE:  # no listener of ours sends several parts; what joined them is not for us to guess
                    self._deliver(body)
                if self._closed:
                    return
        except TransportError as error:
            self._fail(error)

    def _deliver(self, message: bytes) -> None:
        """Hand over one of several messages: the receiver's mistake must not keep the others from it."""
        try:
            self._on_message(message)
        except Exception as error:
            self._loop.call_exception_handler({"message": f"error in who receives from {self._endpoint}", "exception": error})

    def _obey(self, body: bytes) -> None:
        name, data = read_command(body)
        if name == b"PING":
            answer = pong(data)
            with contextlib.suppress(ChannelFull, ChannelClosed):  # who pings without reading gets no answer
                self._put(answer)
        elif name == b"PONG":
            self._missed_beats = 0
        elif name == b"ERROR":
            raise TransportError(f"it reports an error: {error_reason(data)}")

    # ---- sending -------------------------------------------------------------------------------

    def _put(self, frame: bytes) -> None:
        """Send a frame at once, or let it wait."""
        rest: bytes | memoryview = frame
        if self._unsent:
            full = self._unsent_bytes + len(frame) > MAX_UNSENT and len(frame) > SMALL
            if full or len(self._unsent) >= self._high_water:
                why = "doesn't read" if self._open else "isn't connected yet"
                raise ChannelFull(f"{self._endpoint} {why}: its queue is full and nothing was sent")
        elif self._open:
            try:
                rest = self._write(frame)
            except OSError as error:
                raise ChannelClosed(f"{self._endpoint}: {error.strerror}") from None
            if not rest:
                return
        self._unsent.append(rest)
        self._unsent_bytes += len(rest)
        self._sent.clear()
        if self._open:
            self._await_room()

    def _write(self, frame: bytes | memoryview) -> bytes | memoryview:
        """What is left of it. Raises OSError if the connection has ended; the reader learns of it once it has read what came before."""
        assert self._sock is not None
        try:
            sent = self._sock.send(frame)
        except BlockingIOError:
            return frame
        except OSError:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            raise
        return b"" if sent == len(frame) else memoryview(frame)[sent:]

    def _flush(self) -> None:
        while self._unsent:
            frame = self._unsent[0]
            try:
                rest = self._write(frame)
            except OSError:
                self._discard()
                break
            self._unsent_bytes -= len(frame) - len(rest)
            if rest:
                self._unsent[0] = rest
                self._await_room()
                return
            self._unsent.popleft()
        self._sent.set()
        self._await_no_room()

    def _await_room(self) -> None:
        if not self._writing and self._sock is not None:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._flush)

    def _await_no_room(self) -> None:
        if self._writing and self._sock is not None:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())

    def _discard(self) -> None:
        self._unsent.clear()
        self._unsent_bytes = 0

    # ---- ending --------------------------------------------------------------------------------

    def _fail(self, error: TransportError) -> None:
        log.warning("%s is no peer to talk to: %s", self._endpoint, error)
        self._lose()

    def _lose(self) -> None:
        if not self._closed:
            self._shut()
            self._on_lost()

    def _shut(self) -> None:
        if self._closed:
            return
        self._closed, self._ending, self._open = True, True, False
        self._deadline.cancel()
        if self._retry is not None:
            self._retry.cancel()
        self._drop_socket()
        self._discard()
        self._sent.set()

    def _drop_socket(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            if self._writing:
                self._writing = False
                self._loop.remove_writer(sock.fileno())
            sock.close()
        ends, self._ends = self._ends, None
        if ends is not None:
            self._loop.remove_reader(ends.fileno())
            ends.close()


def _ends_of(sock: socket.socket) -> select.epoll | None:
    """What can be read once the connection has ended and never before. Only Linux has it, and only there is it needed."""
    if sys.platform != "linux":
        return None
    ends = select.epoll()
    try:
        ends.register(sock.fileno(), 0)  # an end and an error are always told of
    except OSError:
        ends.close()
        raise
    return ends


def _drop(message: bytes) -> None:
    """Receives what comes while the channel closes."""


def _nothing() -> None:
    """Nobody wants to know of the loss."""
