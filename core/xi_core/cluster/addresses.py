"""Addresses of this machine: which one others reach it at, and how they are written in endpoints."""

from __future__ import annotations

import contextlib
import errno
import socket
import time

from xi_core.access import is_loopback
from xi_core.errors import ConfigError, Unavailable

EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
TRIES = 20
"""Pairs of neighbouring ports that are tried where any will do."""
PATIENCE = 2.0
"""Seconds in which a given port that is taken may become free."""
_PAUSE = 0.05
_FAR = ("192.0.2.1", 9)
"""An address of documentation (RFC 5737): no packet is sent there, the system only says by which way it would go."""


def endpoint(host: str, port: int) -> str:
    """`tcp://HOST:PORT`, with brackets around IPv6."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def split(endpoint: str) -> tuple[str, int]:
    """Host and port of `tcp://HOST:PORT`."""
    host, _, port = endpoint.partition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)


def resolved(host: str) -> str:
    """The numeric address of `host`. Raises `Unavailable`, naming it: the machine's network may not be up yet."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise Unavailable(f"host '{host}' leads to no address: {error.strerror or error}; name another with --host", param="host") from None


def reachable(host: str) -> str:
    """What others should dial to reach a listener at `host`: itself, or where that is everywhere, this machine's own address."""
    return host if host not in EVERYWHERE else own_address()


def of_member(given: str, supervisor: str) -> str:
    """The numeric address at which gateways reach this machine: `given`, or that by which it reaches the supervisor's endpoint.

    Raises `ConfigError`, naming `host`, for one that can't be dialled from elsewhere.
    """
    head = split(supervisor)
    address = resolved(given) if given else own_address(*head)
    if address in EVERYWHERE:
        raise _everywhere(given)
    if is_loopback(address) and not is_loopback(head[0]):
        raise ConfigError(
            f"host '{given or address}' leads to this machine itself ({address}), while the supervisor is at {head[0]}: gateways could not "
            f"reach the models here; name an address of this machine with --host",
            param="host",
        )
    return address


def check_own(host: str) -> None:
    """That replicas of this machine can listen at `host` and others can dial it. Raises `ConfigError` for one that never can be, naming it,
    and `Unavailable` for one that this machine hasn't got, or not yet."""
    address = resolved(host)
    if address in EVERYWHERE:
        raise _everywhere(host)
    try:
        _bound(address, 0).close()
    except OSError as error:
        foreign = error.errno == errno.EADDRNOTAVAIL
        why = "is no address of this machine" if foreign else f"can't be listened at ({error.strerror or error})"
        raise Unavailable(
            f"host '{host}' {why}, and the models here would listen there; name one of its own with --host", param="host"
        ) from None


def _everywhere(host: str) -> ConfigError:
    return ConfigError(f"host '{host}' is no address that others can dial; name this machine's own with --host", param="host")


def own_address(toward: str = "", port: int = 9) -> str:
    """The address by which this machine talks to `toward`, or else to the world; loopback where it has no other."""
    target = (toward, port) if toward else _FAR
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(*target, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    return "127.0.0.1"


def neighbours(address: str, port: int) -> int:
    """The first of two neighbouring ports that are free at `address`: this one, or where it is 0, any. Raises `ConfigError`.

    Blocks for up to `PATIENCE` seconds while a given port is taken: who listened there before may be about to end.
    """
    deadline = time.monotonic() + PATIENCE
    tries = 0
    while True:
        tries += 1
        try:
            with _bound(address, port) as first:
                number = int(first.getsockname()[1])
                _bound(address, number + 1).close()
                return number
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            if (tries >= TRIES) if not port else (not taken or time.monotonic() > deadline):
                which = f"{port} and {port + 1}" if port else "for the cluster"
                raise ConfigError(f"ports {which} of {address} can't be had: {error}; choose others with --cluster-port") from None
        if port:
            time.sleep(_PAUSE)


def _bound(address: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address, port))
    except (OSError, OverflowError):
        found.close()
        raise
    return found
