"""Transports are tested on both loops that xi runs on, and over each kind of wire (`transport_wire.py`)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from xi_plugins.transports.inproc import InprocTransport
from xi_plugins.transports.zmq import ZmqTransport

sys.path.insert(0, str(Path(__file__).parent))

from transport_wire import KINDS, Wire, endpoint_of

ON_BOTH_LOOPS = (
    "test_transports.py",
    "test_transport_addresses.py",
    "test_transport_losses.py",
    "test_transport_strangers.py",
    "test_zmtp_peers.py",
)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    factories = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ON_BOTH_LOOPS:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a short path, for local sockets."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture(params=KINDS)
async def wire(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Wire]:
    """Each built-in transport."""
    transport = InprocTransport() if request.param == "inproc" else ZmqTransport()
    wire = Wire(transport, endpoint_of(request.param, folder), secure="curve" in request.param)
    yield wire
    await wire.close()


@pytest.fixture(params=KINDS[:2])
async def zmq_wire(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Wire]:
    """ZeroMQ, on a local socket and on TCP."""
    wire = Wire(ZmqTransport(), endpoint_of(request.param, folder))
    yield wire
    await wire.close()
