"""The ports of a cluster's supervisor that starts again, and its epoch."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from joining_town import Town

from xi_core.cluster import addresses
from xi_core.cluster.supervisor import Supervisor
from xi_core.config import Settings
from xi_core.errors import ConfigError, TransportError


async def test_a_supervisor_whose_port_is_held_a_moment_longer_waits_for_it(town: Town) -> None:
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    held = await until_bound(port + 1)
    threading.Timer(0.3, held.close).start()
    town.supervise(port)
    assert town.endpoint.endswith(f":{port}")


async def test_a_supervisor_that_cannot_start_leaves_no_port_behind(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PATIENCE", 0.1)
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    with await until_bound(port + 1), pytest.raises(ConfigError, match=r"--cluster-port"):
        town.supervise(port)
    (town.folder / "taken").mkdir()
    monkeypatch.setattr(addresses, "PATIENCE", 5.0)
    for _ in range(2):  # the local socket can't be had: the cluster's ports, taken first, are given back
        with pytest.raises(TransportError):
            Supervisor(
                town.hub,
                Settings(home=str(town.folder / "s")),
                f"ipc://{town.folder}/taken",
                0.0,
                store=town.store,
                cluster=("127.0.0.1", port),
            )
    town.supervise(port)


async def until_bound(port: int) -> socket.socket:
    """The port, as soon as ZeroMQ's own thread has let go of it, held by somebody else."""
    for _ in range(100):
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", port))
            held.listen()
            return held
        except OSError:
            held.close()
            await asyncio.sleep(0.02)
    raise AssertionError(f"port {port} is not free")


async def test_the_epoch_grows_with_each_start(town: Town) -> None:
    first = town.store.next_epoch()
    assert town.store.next_epoch() == first + 1
