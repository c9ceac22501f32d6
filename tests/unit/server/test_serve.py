"""The HTTP server around an application: clients that stand still are cut off while it serves, and don't hold up its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from xi_server import connection
from xi_server.asgi import App
from xi_server.limits import Backlog
from xi_server.metrics import Metrics
from xi_server.serve import HttpServer

BIG = 64 * 1024 * 1024
"""Bytes of an answer that no buffer of the system takes."""


class FakeGateway:
    """As much of a gateway as the server asks for."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(grace=60.0)
        self.supervisor = SimpleNamespace(on_removed=None, subscribed=asyncio.Event())
        self.supervisor.subscribed.set()
        self.dispatcher = SimpleNamespace(backlog=Backlog(stall=0.2))
        self.metrics = Metrics()
        self.stopping = self.closed = False

    def start(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/big` is answered with more than fits anywhere, `/work` after half a second; what else is sent has to be whole."""
    if scope["path"] == "/work":
        await asyncio.sleep(0.5)
    elif scope["path"] != "/big":
        while (await receive()).get("more_body"):
            pass
    body = bytes(BIG) if scope["path"] == "/big" else b"done"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def served(app: App = app) -> AsyncIterator[tuple[HttpServer, FakeGateway, Any]]:
    """A server that runs, its gateway, and how one connects to it. Ends within a few seconds."""
    gateway, announced = FakeGateway(), asyncio.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    server = HttpServer(gateway, app, listening, lambda _: announced.set())  # type: ignore[arg-type]
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(10):
        await announced.wait()
        yield server, gateway, lambda: asyncio.open_connection(*address)
        server.stop()
        await running


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOOK", 0.02)
    monkeypatch.setattr(connection, "UPLOAD_TIMEOUT", 0.2)


async def test_a_request_whose_body_does_not_come_is_cut_off_on_every_route(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (_, gateway, connect):
        reader, writer = await connect()
        writer.write(b"POST /v1/models HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert "has not come in whole within 0.2 s" in caplog.text
        assert gateway.metrics.slow_clients.values == {("",): 1}


async def test_an_answer_that_is_not_read_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """The connection closes when all is written, which is never."""
    async with served() as (server, _, connect):
        _, writer = await connect()
        writer.transport.pause_reading()
        writer.write(b"GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        while not server._server.server_state.total_requests:
            await asyncio.sleep(0.01)
    writer.transport.abort()
    assert "it has read nothing for 0.2 s" in caplog.text


async def test_clients_that_read_and_write_are_left_alone() -> None:
    async with served() as (_, gateway, connect):
        reader, writer = await connect()
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readuntil(b"done")
            await asyncio.sleep(0.3)
        writer.close()
        assert not gateway.metrics.slow_clients.values


async def test_a_request_that_can_speak_for_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows its id and its model; it ends the connection too."""
    told: list[str] = []

    async def speaks(scope: Any, receive: Any, send: Any) -> None:
        state = scope["state"]

        def drop(why: str) -> None:
            told.append(why)
            state["abort"]()

        state["drop"] = drop
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % BIG)]})
        for _ in range(2):
            await send({"type": "http.response.body", "body": bytes(BIG // 2), "more_body": True})

    async with served(speaks) as (_, gateway, connect):
        _, writer = await connect()
        writer.transport.pause_reading()
        writer.write(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
        while not told:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        writer.transport.abort()
    assert told == ["it has read nothing for 0.2 s"]
    assert not gateway.metrics.slow_clients.values


async def test_a_body_that_nobody_asks_for_is_not_waited_for() -> None:
    """Who says `Expect: 100-continue` sends none until told to, and some routes read none."""
    async with served() as (_, gateway, connect):
        reader, writer = await connect()
        writer.write(b"POST /work HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        await reader.readuntil(b"done")
        writer.write(b"{}POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b"HTTP/1.1 100 Continue\r\n\r\n"  # from when it is told, it has its time
        writer.close()
        assert gateway.metrics.slow_clients.values == {("",): 1}


async def test_a_cluster_that_says_twice_that_it_stops_does_not_end_the_grace() -> None:
    async with served() as (server, gateway, connect):
        reader, writer = await connect()
        writer.write(b"GET /work HTTP/1.1\r\nhost: a\r\n\r\n")
        while not server._server.server_state.tasks:
            await asyncio.sleep(0.01)
        gateway.supervisor.on_stop()
        gateway.supervisor.on_stop()
        await asyncio.sleep(0.25)
        assert not gateway.closed
        assert (await reader.read()).endswith(b"done")
        writer.close()
