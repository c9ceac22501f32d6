"""Encryption and the allow-list of the `zmq` transport: CURVE by ZeroMQ's own options, and who may connect, asked by ZAP.

ZeroMQ asks about each connection's key at one address of its context (ZAP, https://rfc.zeromq.org/spec/27/). `_Zap` answers there from the
event loop, for all listeners of the process: each has a domain of its own. What a peer says before it is let in is ZeroMQ's to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TypeVar

import zmq
from zmq.utils import z85

from xi_core.access import is_loopback
from xi_core.errors import ChannelClosed, ChannelRefused, ConfigError, TransportError
from xi_core.transport.security import ClientSecurity, ServerSecurity, check_key
from xi_plugins.transports.zmq_sockets import Reader, close_socket, open_socket

log = logging.getLogger(__name__)

ZAP = "inproc://zeromq.zap.01"
HIGH_WATER = 1000
ALLOWED, REFUSED, FAILED = b"200", b"400", b"500"
MAX_TOLD = 256
"""Refused keys that a listener remembers, so as to log each only once."""

S = TypeVar("S", ServerSecurity, ClientSecurity)

_domains = itertools.count(1)
_zap: _Zap | None = None


def host_of(endpoint: str) -> str:
    """The host in `tcp://HOST:PORT`, without the brackets of IPv6."""
    return endpoint.partition("://")[2].rpartition(":")[0].strip("[]")


def needed(endpoint: str, security: S | None) -> S | None:
    """`security` where `endpoint` wants it: not on local sockets. Raises `ConfigError` for TCP off loopback without it."""
    if not endpoint.startswith("tcp://"):
        return None
    if security is None and not is_loopback(host_of(endpoint)):
        raise ConfigError(f"{endpoint} can be reached from other machines, so it needs keys (CURVE); without them only loopback is allowed")
    return security


def secure_channel(sock: zmq.Socket[bytes], endpoint: str, security: ClientSecurity | None) -> None:
    """Set a dialling socket up, before it connects. Raises `ConfigError` for keys that are none."""
    if "[" in endpoint:
        sock.setsockopt(zmq.IPV6, 1)
    if security is None:
        return
    check_key(security.server, f"the key expected of {endpoint}")
    sock.setsockopt(zmq.CURVE_SERVERKEY, security.server.encode())
    sock.setsockopt(zmq.CURVE_PUBLICKEY, security.keys.public.encode())
    sock.setsockopt(zmq.CURVE_SECRETKEY, security.keys.secret.encode())


def reason(endpoint: str, event: int, value: int) -> TransportError | None:
    """What a monitor's event tells of a handshake that failed; None for other events."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        if value == int(REFUSED):
            return ChannelRefused(f"{endpoint} refused the connection: the key of this process is not known there")
        return ChannelRefused(f"{endpoint} refused the connection: it could not judge the key of this process ({value}); its log says more")
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return ChannelClosed(f"{endpoint} answers, but one side encrypts and the other doesn't, or it is no xi process")
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return ChannelClosed(f"{endpoint} answers, but ends the handshake: its key may be another than the one expected")
    return None


class Guard:
    """Encryption and the allow-list of one listening socket."""

    def __init__(self, sock: zmq.Socket[bytes], endpoint: str, security: ServerSecurity) -> None:
        """Set the socket up, before it is bound. Raises `TransportError`, `ConfigError`."""
        check_key(security.keys.secret, f"the secret key of {endpoint}")
        self._security, self._endpoint = security, endpoint
        self._told: set[str] = set()
        self._domain = b"%d" % next(_domains)
        self._zap = _shared_zap()
        self._zap.guards[self._domain] = self
        sock.setsockopt(zmq.CURVE_SERVER, 1)
        sock.setsockopt(zmq.CURVE_SECRETKEY, security.keys.secret.encode())
        sock.setsockopt(zmq.ZAP_DOMAIN, self._domain)
        sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody is let in when nobody answers
        if security.largest:
            sock.setsockopt(zmq.MAXMSGSIZE, security.largest)

    def close(self) -> None:
        """The socket is closed."""
        self._zap.guards.pop(self._domain, None)
        self._zap.close_if_idle()

    def allows(self, key: str, address: str) -> bool:
        """Whether the owner of `key` may connect. The first refusal of each key is logged."""
        if self._security.allows(key) is not None:
            return True
        if key not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(key)
            log.warning("%s: a connection from %s was refused: its key %s is not known here", self._endpoint, address, key)
        return False


class _Zap:
    """The one place where ZeroMQ asks who may connect. Open while a listener of this process has security."""

    def __init__(self) -> None:
        self.guards: dict[bytes, Guard] = {}
        self.loop = asyncio.get_running_loop()
        self._sock = open_socket(zmq.REP, HIGH_WATER)
        try:
            self._sock.bind(ZAP)
            self._reader = Reader(self.loop, self._sock, self._take)
        except (TransportError, zmq.ZMQError) as error:
            close_socket(self._sock, 0)
            raise TransportError(f"nobody could be let in by key: {error}; is another library answering ZAP in this process?") from None

    def close_if_idle(self) -> None:
        """Close when no listener is left."""
        global _zap
        if self.guards or _zap is not self:
            return
        _zap = None
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._reader.stop()
        self._sock.unbind(ZAP)  # at once: closing frees the address some time later
        close_socket(self._sock, 0)

    def _take(self, limit: int) -> bool:
        for _ in range(limit):
            try:
                request = self._sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            self._sock.send_multipart(self._answer(request), zmq.NOBLOCK)
        return False

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number, domain, address, _, mechanism, *credentials = request
        status, text, user = REFUSED, b"not known here", b""
        try:
            guard = self.guards.get(domain)
            if mechanism == b"CURVE" and guard is not None:
                key = z85.encode(credentials[0])
                if guard.allows(key.decode(), address.decode("ascii", "replace")):
                    status, text, user = ALLOWED, b"", key
        except Exception:  # whoever judges is not ours; the others' handshakes must go on
            log.exception("a connection from %r could not be judged", address)
            status, text = FAILED, b"could not be judged"
        return [version, number, status, text, user, b""]


def _shared_zap() -> _Zap:
    """The process's, opened for its first secure listener. Raises `TransportError` where it belongs to another loop that runs."""
    global _zap
    if _zap is not None and _zap.loop is not asyncio.get_running_loop():
        if not _zap.loop.is_closed():
            raise TransportError("listeners with keys must be on one event loop of a process")
        _zap.guards.clear()
        _zap.close_if_idle()
    if _zap is None:
        _zap = _Zap()
    return _zap
