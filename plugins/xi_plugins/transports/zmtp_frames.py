"""ZMTP 3.1 (https://rfc.zeromq.org/spec/37/) as bytes, without a socket: greeting, handshake, frames and commands. Used by `zmtp`.

Only what a dialling DEALER socket needs to talk to a ROUTER socket under the NULL mechanism. Whatever breaks the rules, or goes over
a bound, is a `TransportError` that says what the peer did.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from xi_core.errors import TransportError

MAX_MESSAGE = 64 * 1024 * 1024
"""Largest message, in bytes; who sends a larger one is disconnected."""
MAX_COMMAND = 4096
"""Largest command, in bytes."""
MAX_CONTEXT = 16
"""Largest context of a PING, in bytes."""

MORE, LONG, COMMAND = 1, 2, 4

_LONG_HEADER = struct.Struct(">BQ")
_SIZE = struct.Struct(">I")
_GREETING_SIZE = 64
_MECHANISM = b"NULL".ljust(20, b"\0")

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + _MECHANISM + bytes(32)
"""What both sides send first: signature, version, mechanism, and that we are not the server of the mechanism."""


def message_frame(message: bytes) -> bytes:
    """A whole message as it goes on the wire."""
    size = len(message)
    return (b"\0%c" % size if size < 256 else _LONG_HEADER.pack(LONG, size)) + message


def command_frame(name: bytes, data: bytes = b"") -> bytes:
    """A command as it goes on the wire. Name and data together are under 255 bytes."""
    return bytes((COMMAND, 1 + len(name) + len(data), len(name))) + name + data


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + _SIZE.pack(len(value)) + value


READY = command_frame(b"READY", _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b""))
"""What we send when the peer's greeting is good."""


def check_greeting(seen: bytes) -> None:
    """Raises `TransportError` if `seen`, up to 64 bytes of a greeting, can't become one that we understand."""
    if seen[:1] not in (b"", b"\xff") or seen[9:10] not in (b"", b"\x7f"):
        raise TransportError("it does not speak ZMTP")
    if len(seen) > 10 and seen[10] < 3:
        raise TransportError("it speaks a ZMTP older than 3.0")  # a newer one must speak ours to us
    if len(seen) >= 32 and seen[12:32] != _MECHANISM:
        raise TransportError("it asks for another security mechanism than NULL")


def check_ready(flags: int, body: bytes) -> None:
    """Raises `TransportError` unless this is the READY command of a ROUTER socket."""
    name, data = read_command(body) if flags & COMMAND else (b"a message", b"")
    if name == b"ERROR":
        raise TransportError(f"it refuses the connection: {error_reason(data)}")
    if name != b"READY":
        raise TransportError("it sent something else than READY after its greeting")
    kind = _properties(data).get(b"socket-type")
    if kind != b"ROUTER":
        raise TransportError("its socket is not of the type ROUTER")


def _properties(data: bytes) -> dict[bytes, bytes]:
    """The metadata of READY, names in lower case."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        value_at = name_end + _SIZE.size
        if value_at > len(data):
            raise TransportError("it sent a READY that can't be read")
        value_end = value_at + int.from_bytes(data[name_end:value_at], "big")
        if value_end > len(data):
            raise TransportError("it sent a READY that can't be read")
        found[data[at + 1 : name_end].lower()] = data[value_at:value_end]
        at = value_end
    return found


def read_command(body: bytes) -> tuple[bytes, bytes]:
    """A command's name and data."""
    end = 1 + (body[0] if body else 0)
    if not 1 < end <= len(body):
        raise TransportError("it sent a command without a name")
    return body[1:end], body[end:]


def error_reason(data: bytes) -> str:
    """The words of an ERROR command, fit to be printed."""
    return ascii(data[1:].decode("ascii", "replace"))


def pong(data: bytes) -> bytes:
    """The frame that answers a PING with this data: two bytes of time to live, then a context to be sent back."""
    if not 2 <= len(data) <= 2 + MAX_CONTEXT:
        raise TransportError("it sent a PING of a wrong size")
    return command_frame(b"PONG", data[2:])


PING = command_frame(b"PING", bytes(2))
"""Asks for a PONG, with which ZeroMQ's own thread answers; without a time to live."""


def only_message(data: bytes) -> bytes | None:
    """The message, where `data` is exactly one message in one frame, as it nearly always is; else None."""
    size = len(data)
    if size > 1:
        flags = data[0]
        if flags == 0:
            if data[1] == size - 2:
                return data[2:]
        elif flags == LONG and size > 9 and int.from_bytes(data[1:9], "big") == size - 9:
            return data[9:]
    return None


class FrameReader:
    """Cuts a stream of bytes into frames. It holds at most one frame that is not whole, and a chunk."""

    def __init__(self) -> None:
        self.held = bytearray()
        """The beginning of a frame whose end has not come."""
        self._need = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Flags and body of each frame that is whole now; take them all before more is fed. After the last good one a bad one raises
        `TransportError`."""
        if self.held:
            self.held += data
            if len(self.held) < self._need:
                return
            data = bytes(self.held)
            self.held.clear()
        at = 0
        while True:
            flags, start, stop = _frame_at(data, at)
            if stop > len(data):
                break
            yield flags, data[start:stop]
            at = stop
        self.held += data[at:]
        self._need = stop - at


class Handshake:
    """The peer's part of the opening: its greeting, then READY."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        """What came after it, once it is done."""
        self._greeted = False

    def feed(self, data: bytes) -> bytes:
        """What to send in answer, or nothing. Raises `TransportError` if the peer is not one to talk to."""
        self.rest += data
        answer = b""
        if not self._greeted:
            check_greeting(self.rest[:_GREETING_SIZE])
            if len(self.rest) < _GREETING_SIZE:
                return b""
            self._greeted, self.rest, answer = True, self.rest[_GREETING_SIZE:], READY
        flags, start, stop = _frame_at(self.rest, 0)
        if self.rest and not flags & COMMAND:
            raise TransportError("it sent something else than READY after its greeting")
        if stop <= len(self.rest):
            check_ready(flags, self.rest[start:stop])
            self.done, self.rest = True, self.rest[stop:]
        return answer


def _frame_at(data: bytes, at: int) -> tuple[int, int, int]:
    """Flags, start and stop of the body of the frame that begins at `at`; while its header isn't whole, `stop` is the header's end."""
    left = len(data) - at
    if left < 1:
        return 0, at, at + 2
    flags = data[at]
    if flags > 7 or flags & (COMMAND | MORE) == COMMAND | MORE:
        raise TransportError(f"it sent a frame with impossible flags ({flags})")
    header = 9 if flags & LONG else 2
    if left < header:
        return flags, at, at + header
    size = int.from_bytes(data[at + 1 : at + header], "big")
    limit = MAX_COMMAND if flags & COMMAND else MAX_MESSAGE
    if size > limit:
        raise TransportError(f"it sent a frame of {size} bytes, over the limit of {limit}")
    return flags, at + header, at + header + size
