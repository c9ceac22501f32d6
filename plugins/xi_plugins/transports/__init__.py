"""Built-in transports: ZeroMQ between processes, and one inside a process for tests and embedding."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.hookspecs import hookimpl
from xi_core.transport.base import TransportInfo


@hookimpl
def xi_transports() -> Iterable[TransportInfo]:
    """ZeroMQ (`ipc`, `tcp`) and in-process (`inproc`)."""
    return [
        TransportInfo(
            name="zmq",
            transport="xi_plugins.transports.zmq:ZmqTransport",
            schemes=("ipc", "tcp"),
            description="ZeroMQ: local sockets and TCP",
        ),
        TransportInfo(
            name="inproc",
            transport="xi_plugins.transports.inproc:InprocTransport",
            schemes=("inproc",),
            description="Within one process and one event loop, for tests and embedding",
        ),
    ]
