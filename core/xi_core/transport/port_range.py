"""Listening at any free port of a range: `tcp://HOST:FIRST-LAST`. Part of replicas, whose machines may let only such ports through."""

from __future__ import annotations

import errno
import random
import re
import socket
from collections.abc import Callable

from xi_core.errors import TransportError
from xi_core.transport.base import Listener, Peer, Transport
from xi_core.transport.security import ServerSecurity

TRIES = 64


def listen(
    transport: Transport, endpoint: str, on_message: Callable[[Peer, bytes], None], security: ServerSecurity | None = None
) -> Listener:
    """As `transport.listen`, at a random port of the range where `endpoint` has one. Raises `TransportError` where none is free."""
    found = re.fullmatch(r"(tcp://.+):(\d+)-(\d+)", endpoint)
    if found is None:
        return transport.listen(endpoint, on_message, security)
    ports = range(int(found[2]), int(found[3]) + 1)
    last: TransportError | None = None
    for port in random.sample(ports, min(len(ports), TRIES)):
        try:
            return transport.listen(f"{found[1]}:{port}", on_message, security)
        except TransportError as error:
            if last is None and _is_foreign(found[1].removeprefix("tcp://").strip("[]")):
                host = found[1].removeprefix("tcp://")
                why = f"{host} is no address of this machine, so nothing can listen there"
                raise TransportError(f"{why}; start its worker with one of the machine's own: --host") from None
            last = error
    raise TransportError(f"no port of {endpoint} could be had; the last that was tried: {last}; widen XI_PORT_RANGE, or free some")


def _is_foreign(host: str) -> bool:
    """Whether `host` is an address that this machine hasn't (any more)."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        return error.errno == errno.EADDRNOTAVAIL
    return False
