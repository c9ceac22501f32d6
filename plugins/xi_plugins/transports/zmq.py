"""The `zmq` transport: DEALER and ROUTER sockets over `ipc` and `tcp`, drained from the event loop. One ZeroMQ context per process.

Local endpoints are dialled by `zmtp`, which speaks ZeroMQ's protocol from the event loop; listening, and dialling over `tcp`, is here.
Why it is written as it is:

* `zmq.asyncio` costs many times more per message, so each socket's descriptor has one readable callback that reads all there is,
  bounded so that the loop is not starved.
* The descriptor is edge-triggered and a send may swallow its edge, also one that fails: `Reader.look_soon` looks once after every batch
  of sends.
* ZeroMQ hides disconnects and would resume on another listener. The dialling side watches its socket's monitor, never reconnects
  once a connection stood, and hands no message to ZeroMQ before that.
* ZeroMQ's own `ipc` bind silently takes over a path in use, and removes the file at some later time. So the local socket is bound
  here and given to ZeroMQ, and its file is removed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

import zmq

from xi_core.errors import ChannelClosed, ChannelFull, TransportError, XiError
from xi_core.transport.base import NO_PULSE, Channel, Listener, Peer, Transport
from xi_core.transport.security import ClientSecurity, ServerSecurity
from xi_plugins.transports import zmq_security
from xi_plugins.transports.socket_file import SocketFile
from xi_plugins.transports.zmq_pulse import Pulse
from xi_plugins.transports.zmq_sockets import BATCH, Reader, close_socket, flush, open_socket
from xi_plugins.transports.zmtp import CONNECT_TIMEOUT, RETRY, ZmtpChannel
from xi_plugins.transports.zmtp_frames import MAX_MESSAGE

HIGH_WATER = 1000
"""Messages that may wait on either side of a connection, besides what the kernel holds."""
MAX_KNOWN = 16384
"""Peers whose keys a listener remembers; those that are forgotten are looked up again."""

_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_NOBLOCK = zmq.NOBLOCK
_STATE = int(zmq.EVENTS)  # asked as a plain number, and instead of a recv that finds nothing: pyzmq's exception costs six times as much
_READABLE = int(zmq.POLLIN)
_MORE = zmq.NOBLOCK | zmq.SNDMORE


class ZmqTransport(Transport):
    """Endpoints `ipc://PATH` and `tcp://HOST:PORT` (port 0: a free one). `high_water` bounds each queue, in messages.

    `tcp` with `security` is encrypted (CURVE) and lets in who is allowed; without, it is for loopback only.
    """

    def __init__(self, high_water: int = HIGH_WATER) -> None:
        self._high_water = high_water

    def listen(self, endpoint: str, on_message: Callable[[Peer, bytes], None], security: ServerSecurity | None = None) -> Listener:
        return ZmqListener(endpoint, on_message, self._high_water, zmq_security.needed(endpoint, security))

    def connect(
        self,
        endpoint: str,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[], None],
        security: ClientSecurity | None = None,
    ) -> Channel:
        if endpoint.startswith("ipc://") and hasattr(socket, "AF_UNIX"):
            return ZmtpChannel(endpoint, on_message, on_lost, self._high_water)
        return ZmqChannel(endpoint, on_message, on_lost, self._high_water, zmq_security.needed(endpoint, security))

    def finish(self, seconds: float) -> None:
        flush(seconds)


class ZmqChannel(Channel):
    """Dialling side over `tcp`: a DEALER socket. Until the connection stands, messages wait here, not in ZeroMQ."""

    def __init__(
        self,
        endpoint: str,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[], None],
        high_water: int,
        security: ClientSecurity | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoint, self._security = endpoint, security
        self._on_message = on_message
        self._on_lost = on_lost
        self._open = False
        self._closed = False
        self._pulse: Pulse | None = None
        self._settled = asyncio.Event()
        self._outbox: deque[bytes] = deque()
        self._high_water = high_water
        self._sock = open_socket(zmq.DEALER, high_water)
        self._readers: list[Reader] = []
        self._monitor: zmq.Socket[bytes] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        try:
            self._monitor = self._sock.get_monitor_socket(_EVENTS | _FAILURES)
            self._monitor.setsockopt(zmq.LINGER, 0)
            self._readers.append(Reader(self._loop, self._monitor, self._take_events))
            self._reader = Reader(self._loop, self._sock, self._take)
            self._readers.append(self._reader)
            zmq_security.secure_channel(self._sock, endpoint, security)
            self._sock.connect(endpoint)
        except (XiError, zmq.ZMQError) as error:
            self._shut(0)
            raise _dial_error(endpoint, error) from None
        for reader in self._readers:
            reader.look_soon()  # connecting may have swallowed the first edge
        self._deadline = self._loop.call_later(CONNECT_TIMEOUT, self._give_up)

    def send(self, message: bytes) -> None:
        if len(message) > MAX_MESSAGE:
            raise _too_large(message)
        if not self._open:
            self._keep(message)
            return
        if self._has_ended():
            raise ChannelClosed(f"{self._endpoint}: the connection has ended")
        try:
            self._sock.send(message, _NOBLOCK)
        except zmq.Again:
            raise ChannelFull(f"{self._endpoint} doesn't read: its queue is full and nothing was sent") from None
        except zmq.ZMQError as error:
            raise ChannelClosed(f"{self._endpoint}: {error}") from None
        finally:
            if not self._reader.looking:
                self._reader.look_soon()

    def missed_beats(self) -> int:
        if not self._open:
            return NO_PULSE
        if self._pulse is None:
            with contextlib.suppress(XiError, zmq.ZMQError):  # no sockets are left: there is no pulse to feel
                self._pulse = Pulse(self._endpoint, self._security)
        return 0 if self._pulse is not None and self._pulse.beats else NO_PULSE

    async def close(self, grace: float = 1.0) -> None:
        if self._closed:
            return
        if self._outbox:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), grace)
        self._shut(grace)

    def abort(self) -> None:
        self._shut(0)

    def _keep(self, message: bytes) -> None:
        if self._closed:
            raise ChannelClosed(f"the channel to {self._endpoint} is closed")
        if len(self._outbox) >= self._high_water:
            raise ChannelFull(f"{self._endpoint} isn't connected yet and {self._high_water} messages wait for it; nothing was sent")
        self._outbox.append(message)

    def _has_ended(self) -> bool:
        """Whether ZeroMQ has news of the open connection, which can only be its end: what is sent goes nowhere then, unsaid."""
        monitor = self._monitor
        if monitor is None or not int(monitor.getsockopt(_STATE)) & _READABLE:
            return False
        self._readers[0].look_soon()  # this look may have swallowed the edge
        return True

    def _take(self, limit: int) -> bool:
        recv, getsockopt, on_message = self._sock.recv, self._sock.getsockopt, self._on_message
        for _ in range(limit):
            if not int(getsockopt(_STATE)) & _READABLE:
                return True
            on_message(recv(_NOBLOCK))
            if self._closed:
                return True
        return False

    def _take_events(self, limit: int) -> bool:
        monitor = self._monitor
        if monitor is None:
            return True
        for _ in range(limit):
            try:
                event = monitor.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return True
            self._on_event(int.from_bytes(event[0][:2], "little"), int.from_bytes(event[0][2:6], "little"))
            if self._closed:
                return True
        return False

    def _on_event(self, event: int, value: int) -> None:
        self.error = zmq_security.reason(self._endpoint, event, value) or self.error
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected()
        elif self._open or event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._lose()
        elif self._retry is None:
            self._retry = self._loop.call_later(RETRY, self._dial_again)

    def _connected(self) -> None:
        self._open, self.error = True, None
        if self._deadline is not None:
            self._deadline.cancel()
        for message in self._outbox:
            self._sock.send(message, _NOBLOCK)  # never more than the high-water mark
        self._outbox.clear()
        self._settled.set()
        self._reader.look_soon()

    def _dial_again(self) -> None:
        self._retry = None
        if self._open or self._closed:
            return
        with contextlib.suppress(zmq.ZMQError):  # ENOENT: ZeroMQ has given the endpoint up itself
            self._sock.disconnect(self._endpoint)
        self._sock.connect(self._endpoint)
        self._reader.look_soon()

    def _give_up(self) -> None:
        if not self._open:
            self._lose()

    def _lose(self) -> None:
        """The connection has ended: hand over what had come before, then tell."""
        if self._closed:
            return
        try:
            while not self._take(BATCH):
                pass
        finally:
            told = self._closed
            self._shut(0)
            if not told:
                self._on_lost()

    def _shut(self, linger: float) -> None:
        if self._closed:
            return
        self._closed, self._open = True, False
        self._outbox.clear()
        self._settled.set()
        for timer in (self._deadline, self._retry):
            if timer is not None:
                timer.cancel()
        if self._pulse is not None:
            self._pulse.close()
        for reader in self._readers:
            reader.stop()
        if self._monitor is not None:
            self._sock.disable_monitor()
            self._monitor.close()
        close_socket(self._sock, linger)


class ZmqListener(Listener):
    """Accepting side: a ROUTER socket, which names each connection by bytes of its own."""

    def __init__(
        self, endpoint: str, on_message: Callable[[Peer, bytes], None], high_water: int, security: ServerSecurity | None = None
    ) -> None:
        self._on_message = on_message
        self._closed = False
        self._keys: dict[Peer, str] | None = None if security is None else {}
        self._guard: zmq_security.Guard | None = None
        self._file: SocketFile | None = None
        self._sock = open_socket(zmq.ROUTER, high_water)
        self._sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            if security is not None:
                self._guard = zmq_security.Guard(self._sock, endpoint, security)
            self._bind(endpoint)
            self._reader = Reader(asyncio.get_running_loop(), self._sock, self._take)
        except (XiError, zmq.ZMQError) as error:
            self._free(0)
            raise _listen_error(endpoint, error) from None
        self._reader.look_soon()

    def send(self, peer: Peer, message: bytes) -> None:
        if len(message) > MAX_MESSAGE:
            raise _too_large(message)
        if self._closed:
            raise ChannelClosed(f"{self.endpoint} is closed")
        send = self._sock.send
        try:
            send(peer, _MORE)
            send(message, _NOBLOCK)
        except zmq.Again:
            raise ChannelFull(f"{self.endpoint}: peer {peer.hex()} doesn't read; nothing was sent") from None
        except zmq.ZMQError:
            raise ChannelClosed(f"{self.endpoint}: peer {peer.hex()} is gone") from None
        finally:
            if not self._reader.looking:
                self._reader.look_soon()

    async def close(self, grace: float = 1.0) -> None:
        self._shut(grace)

    def abort(self) -> None:
        self._shut(0)

    def key_of(self, peer: Peer) -> str:
        return self._keys.get(peer, "") if self._keys is not None else ""

    def _bind(self, endpoint: str) -> None:
        if endpoint.startswith("ipc://"):
            self._file = SocketFile(endpoint.removeprefix("ipc://"))
            self._sock.setsockopt(zmq.USE_FD, self._file.detach())
        if "[" in endpoint:
            self._sock.setsockopt(zmq.IPV6, 1)
        self._sock.bind(endpoint)
        self.endpoint = endpoint if self._file else self._sock.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def _shut(self, grace: float) -> None:
        if not self._closed:
            self._closed = True
            self._reader.stop()
            self._free(grace)

    def _free(self, grace: float) -> None:
        if self._file is not None:
            self._file.remove()
        close_socket(self._sock, grace)
        if self._guard is not None:
            self._guard.close()

    def _take(self, limit: int) -> bool:
        recv, getsockopt, on_message = self._sock.recv, self._sock.getsockopt, self._on_message
        for _ in range(limit):
            try:
                peer = recv(_NOBLOCK)
            except zmq.Again:
                return True
            message = recv(_NOBLOCK) if self._keys is None or peer in self._keys else self._first(self._keys, peer)
            while getsockopt(zmq.RCVMORE):  # no channel of ours sends several parts; what joined them is not for us to guess
                message = recv(_NOBLOCK)
            on_message(peer, message)
            if self._closed:
                return True
        return False

    def _first(self, keys: dict[Peer, str], peer: Peer) -> bytes:
        """The first message of a peer, which tells its key: the handshake has proven that it owns it."""
        frame: zmq.Frame = self._sock.recv(_NOBLOCK, copy=False)
        while len(keys) >= MAX_KNOWN:
            del keys[next(iter(keys))]
        keys[peer] = str(frame.get("User-Id"))
        return frame.bytes


def _too_large(message: bytes) -> TransportError:
    return TransportError(f"a message of {len(message)} bytes is over the limit of {MAX_MESSAGE}")


def _dial_error(endpoint: str, error: XiError | zmq.ZMQError) -> XiError:
    return error if isinstance(error, XiError) else TransportError(f"can't dial {endpoint}: {error}")


def _listen_error(endpoint: str, error: XiError | zmq.ZMQError) -> XiError:
    return error if isinstance(error, XiError) else TransportError(f"can't listen at {endpoint}: {error}")
