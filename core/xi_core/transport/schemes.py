"""Which transport carries an endpoint, by its scheme. Used by every process that dials or listens."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.errors import TransportError
from xi_core.transport.base import Transport, TransportInfo


def scheme_of(endpoint: str) -> str:
    """`ipc` of `ipc:///run/x.sock`. Raises `TransportError` where there is none."""
    scheme, found, rest = endpoint.partition("://")
    if not found or not scheme or not rest:
        raise TransportError(f"'{endpoint}' is no endpoint; write scheme://address, for example tcp://127.0.0.1:9990")
    return scheme.lower()


def by_scheme(transports: Iterable[TransportInfo], endpoint: str) -> Transport:
    """A transport that carries `endpoint`, imported now; `transports` are the hub's. Raises `TransportError` if none does."""
    scheme, known = scheme_of(endpoint), list(transports)
    for info in known:
        if scheme in info.schemes:
            return load(info)
    schemes = ", ".join(sorted({scheme for info in known for scheme in info.schemes})) or "none"
    raise TransportError(f"no transport carries '{endpoint}'; known schemes: {schemes}")


def load(info: TransportInfo) -> Transport:
    """The transport that a descriptor names. Raises `TransportError` if its library is missing or it is not a `Transport`."""
    from xi_core.importing import import_path  # pluggy is needed only here

    try:
        found = import_path(info.transport)()
    except ImportError as error:
        raise TransportError(f"transport '{info.name}' can't be loaded: {error}") from error
    if not isinstance(found, Transport):
        raise TransportError(f"transport '{info.name}': {info.transport} is not a subclass of xi_core.transport.base.Transport")
    return found
