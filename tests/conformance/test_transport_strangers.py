"""Peers of the ZeroMQ transport that speak something else, or too much."""

from __future__ import annotations

import socket
from pathlib import Path

import zmq
from transport_wire import MiB, Wire

from xi_core.testing.waiting import until
from xi_plugins.transports.zmq import ZmqTransport


async def test_garbage_leaves_other_channels_alone(zmq_wire: Wire) -> None:
    listener = zmq_wire.listen()
    good = await zmq_wire.connected()
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.connect(zmq_wire.endpoint)
    raw.send_multipart([b"one", b"two", b"three"])
    raw.send(b"alone")
    bare = _bare_socket(zmq_wire.endpoint)
    bare.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 64)
    await until(lambda: b"alone" in [message for _, message in zmq_wire.received])
    good.channel.send(b"still here")
    listener.send(good.peer, b"you too")
    await until(lambda: (good.peer, b"still here") in zmq_wire.received and good.received)
    bare.close()
    raw.close(0)
    assert good.lost == 0


def _bare_socket(endpoint: str) -> socket.socket:
    if endpoint.startswith("ipc://"):
        bare = socket.socket(socket.AF_UNIX)
        bare.connect(endpoint.removeprefix("ipc://"))
        return bare
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


async def test_a_listener_that_is_no_zmq_is_a_loss(folder: Path) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    wire = Wire(ZmqTransport(), f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    dialled = wire.connect()
    await until(lambda: dialled.lost)
    silent.close()


async def test_an_oversize_message_disconnects_its_sender(zmq_wire: Wire) -> None:
    zmq_wire.listen()
    raw = zmq.Context.instance().socket(zmq.DEALER)
    raw.connect(zmq_wire.endpoint)
    monitor = raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    raw.send(bytes(64 * MiB + 1))
    await until(lambda: monitor.poll(0))
    raw.disable_monitor()
    monitor.close(0)
    raw.close(0)
    assert zmq_wire.received == []
