"""The pulse of a process at the other end of a `tcp` connection: whether it runs, however busy its Python is.

A second connection beside that of the channel carries no messages, only ZeroMQ's own heartbeats, which the other process's I/O thread
answers: that needs neither its event loop nor Python's lock, and stops when the process is stopped. It is apart from the channel because
ZeroMQ breaks a connection whose beats it misses, also where it was this process that stood still.
"""

from __future__ import annotations

import asyncio

import zmq

from xi_core.transport.security import ClientSecurity
from xi_plugins.transports import zmq_security
from xi_plugins.transports.zmq_sockets import Reader, close_socket, open_socket

INTERVAL_MS = 250
TIMEOUT_MS = 500
"""Milliseconds between beats, and for which an answer may take; a process that stops is known after both."""
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Pulse:
    """Made on the event loop; `beats` tells how it is now."""

    def __init__(self, endpoint: str, security: ClientSecurity | None) -> None:
        """Dials at once, and again when it was lost, until closed. Raises `TransportError`, `ConfigError`, `zmq.ZMQError`."""
        self.beats = False
        """Beats are answered."""
        self._sock = open_socket(zmq.DEALER, 1)
        self._readers: list[Reader] = []
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            for option, value in (
                (zmq.HEARTBEAT_IVL, INTERVAL_MS),
                (zmq.HEARTBEAT_TIMEOUT, TIMEOUT_MS),
                (zmq.RECONNECT_IVL, INTERVAL_MS),
            ):
                self._sock.setsockopt(option, value)
            self._monitor = self._sock.get_monitor_socket(_EVENTS)
            self._monitor.setsockopt(zmq.LINGER, 0)
            self._readers.append(Reader(asyncio.get_running_loop(), self._monitor, self._take))
            zmq_security.secure_channel(self._sock, endpoint, security)
            self._sock.connect(endpoint)
        except BaseException:
            self.close()
            raise
        self._readers[0].look_soon()

    def close(self) -> None:
        """Hang up."""
        for reader in self._readers:
            reader.stop()
        if self._monitor is not None:
            self._sock.disable_monitor()
            self._monitor.close()
        close_socket(self._sock, 0)

    def _take(self, limit: int) -> bool:
        assert self._monitor is not None
        for _ in range(limit):
            try:
                event = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            self.beats = int.from_bytes(event[0][:2], "little") == zmq.EVENT_HANDSHAKE_SUCCEEDED
        return False
