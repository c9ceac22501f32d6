"""What a worker tells a replica that serves, on the pipe that brought its plan: four bytes of length, big-endian, then msgpack."""

from __future__ import annotations

import struct

import msgspec
from msgspec import Struct

LONGEST = 64 * 1024
"""Bytes of one order."""


class Order(Struct):
    """Sleep at this level; 0: wake. The replica reports `Obeyed` with the same number."""

    number: int
    level: int


_decode = msgspec.msgpack.Decoder(Order).decode


def encode(order: Order) -> bytes:
    """As it goes over the pipe."""
    data = msgspec.msgpack.encode(order)
    return struct.pack(">I", len(data)) + data


class OrderReader:
    """From pieces of the pipe to whole orders."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Order]:
        """The orders that are whole now. Raises `ValueError` where it is none: what follows can't be read either."""
        self._buffer += data
        found = []
        while len(self._buffer) >= 4:
            (size,) = struct.unpack(">I", self._buffer[:4])
            if size > LONGEST:
                raise ValueError(f"an order of {size} bytes")
            if len(self._buffer) < 4 + size:
                break
            found.append(_decode(self._buffer[4 : 4 + size]))
            self._buffer = self._buffer[4 + size :]
        return found
