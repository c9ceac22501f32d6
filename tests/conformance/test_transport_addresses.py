"""Addresses of the built-in transports: which are refused, taken and free again, and the files of local ones."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from transport_wire import Wire

from xi_core.errors import TransportError
from xi_core.plugins import PluginHub
from xi_core.transport.schemes import by_scheme
from xi_plugins.transports.inproc import InprocTransport
from xi_plugins.transports.zmq import ZmqTransport


async def test_an_address_is_taken_once(wire: Wire) -> None:
    wire.listen()
    with pytest.raises(TransportError):
        wire.listen()
    dialled = await wire.connected()
    assert dialled.lost == 0


async def test_bad_endpoints_are_refused(wire: Wire) -> None:
    with pytest.raises(TransportError):
        wire.transport.listen("nonsense", lambda peer, message: None)
    with pytest.raises(TransportError):
        wire.transport.connect("nonsense", lambda message: None, lambda: None)


async def test_a_local_address_is_free_again_at_once(wire: Wire) -> None:
    if wire.endpoint.startswith("tcp"):
        pytest.skip("the kernel frees a TCP port when ZeroMQ's own thread has closed it")
    for _ in range(20):
        listener = wire.listen()
        await wire.connected()
        await listener.close()
    listener = wire.listen()
    await wire.connected()


async def test_the_socket_file_is_removed(folder: Path) -> None:
    listener = ZmqTransport().listen(f"ipc://{folder}/x.sock", lambda peer, message: None)
    assert (folder / "x.sock").is_socket()
    await listener.close()
    assert not (folder / "x.sock").exists()


async def test_a_stale_socket_file_is_replaced(folder: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(f"{folder}/x.sock")
    dead.close()
    wire = Wire(ZmqTransport(), f"ipc://{folder}/x.sock")
    wire.listen()
    assert (await wire.connected()).lost == 0
    await wire.close()


async def test_other_files_and_long_paths_are_left_alone(folder: Path) -> None:
    (folder / "x.sock").write_text("precious")
    with pytest.raises(TransportError, match="no socket"):
        ZmqTransport().listen(f"ipc://{folder}/x.sock", lambda peer, message: None)
    assert (folder / "x.sock").read_text() == "precious"
    with pytest.raises(TransportError):
        ZmqTransport().listen(f"ipc://{folder}/{'x' * 120}", lambda peer, message: None)
    with pytest.raises(TransportError):
        ZmqTransport().connect(f"ipc://{folder}/{'x' * 120}", lambda message: None, lambda: None)


def test_transports_are_found_by_scheme() -> None:
    hub = PluginHub()
    import xi_plugins.transports

    hub.register(xi_plugins.transports, "transports")
    assert isinstance(by_scheme(hub.transports, "ipc:///x"), ZmqTransport)
    assert isinstance(by_scheme(hub.transports, "tcp://127.0.0.1:1"), ZmqTransport)
    assert isinstance(by_scheme(hub.transports, "inproc://x"), InprocTransport)
    with pytest.raises(TransportError, match="known schemes: inproc, ipc, tcp"):
        by_scheme(hub.transports, "carrier-pigeon://x")
    with pytest.raises(TransportError, match="no endpoint"):
        by_scheme(hub.transports, "/x")
