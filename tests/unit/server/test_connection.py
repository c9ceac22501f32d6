"""Connections of clients over real sockets: bounds on what is unfinished, waits or isn't read, HTTP/1.0, and what is relied on in uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.server import ServerState

from xi_server import connection

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
BIG = 64 * 1024 * 1024
"""Bytes of an answer that no buffer of the system takes."""

App = Callable[[Any, Any, Any], Awaitable[None]]


async def done(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and answers `done`."""
    while (await receive()).get("more_body"):
        pass
    await answer(send, b"done")


async def refusal(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, whatever comes."""
    await answer(send, b"done")


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """Answers when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope["state"]["left"].append(scope["path"])


async def answer(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def connected(app: App = done, state: dict[str, Any] | None = None) -> AsyncIterator[tuple[Any, Any, set[Any]]]:
    """A connection to an application behind the gateway's protocol, and the server's connections."""
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=1)
    shared = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: connection.Connection(config, shared, state or {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        async with asyncio.timeout(20):
            yield reader, writer, shared.connections
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()


async def rest_of(reader: Any) -> bytes:
    """All that still comes, up to the end, whether that is orderly or not."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            got += piece
    return got


async def send_until_cut(writer: Any, piece: bytes, pieces: int) -> int:
    """Send up to so many pieces; how many bytes went out."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        for _ in range(pieces):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
            sent += len(piece)
    return sent


def test_uvicorn_still_has_what_the_connection_uses() -> None:
    """Direct writes fall back to plain ASGI where something is gone (docs/adr/0006); the bounds would be gone unnoticed."""
    cycle = inspect.getsource(httptools_impl.RequestResponseCycle)
    states = ("disconnected", "more_body", "response_started", "response_complete", "waiting_for_100_continue")
    for name in ("chunked_encoding", "keep_alive", "message_event", "scope", *states):
        assert f"self.{name} = " in cycle, name
    assert "num_bytes > self.expected_content_length" in cycle
    assert "self.expected_content_length -= num_bytes" in cycle
    assert "self.expected_content_length != 0" in cycle
    assert "write_paused" in inspect.getsource(flow_control.FlowControl)
    protocol = httptools_impl.HttpToolsProtocol
    for name in ("on_headers_complete", "on_body", "on_response_complete", "send_400_response", "data_received"):
        assert callable(getattr(protocol, name)), name
    source = inspect.getsource(protocol)
    assert all(name in source for name in ("self.cycle", "self.flow", "self.transport", "self.app_state"))
    assert "self.pipeline.appendleft((self.cycle, app))" in source
    assert "self.pipeline.pop()" in source
    assert "on_response=self.on_response_complete" in source
    assert 'self.scope["http_version"] = http_version' in source
    assert '"http_version": "1.1"' in source


@pytest.mark.parametrize("before", [b"", GET])
@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nhost: "])
async def test_a_connection_without_a_whole_head_is_closed(monkeypatch: pytest.MonkeyPatch, before: bytes, begun: bytes) -> None:
    """Nothing else would ever close it, and each holds a descriptor of the gateway's, with or without a key."""
    monkeypatch.setattr(connection, "KEEP_ALIVE", 0.3)
    async with connected() as (reader, writer, _):
        if before:
            writer.write(before)
            await reader.readuntil(b"done")
        writer.write(begun)
        assert await reader.read() == b""


async def test_a_request_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE", 0.2)
    async with connected() as (reader, writer, _):
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n")
            await asyncio.sleep(0.5)
            writer.write(b"x")
            await reader.readuntil(b"done")


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: ", b"a" * 4096),
        (b"GET / HTTP/1.1\r\nhost: a\r\n", b"x: b\r\n" * 700),
        (b"GET /", b"a" * 4096),
        (b"", b"\r\n" * 2048),
        (GET + b"GET / HTTP/1.1\r\nx: ", b"a" * 4096),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"x: b\r\n" * 700),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", b"x" * 4096),
    ],
    ids=["header", "headers", "path", "nothing", "second", "trailers", "extension"],
)
@pytest.mark.parametrize("app", [done, refusal])
async def test_a_head_without_an_end_is_refused(app: App, begun: bytes, piece: bytes) -> None:
    """httptools would keep all of it, and copy all that it has for each piece that comes."""
    async with connected(app) as (reader, writer, connections):
        writer.write(begun)
        await asyncio.sleep(0.05)  # so that answers which are due stand before the refusal
        reading = asyncio.create_task(rest_of(reader))
        sent = await send_until_cut(writer, piece, 2000)
        got = await reading
        assert b"HTTP/1.1 431 " in got
        assert b'"code":"request_header_fields_too_large"' in got
        assert sent < 4 * 2**20  # what the system's buffers take, and not all
        while connections:
            await asyncio.sleep(0.01)


async def test_long_heads_and_longer_bodies_are_taken() -> None:
    head = b"POST / HTTP/1.1\r\nhost: a\r\nx: %b\r\n" % (b"a" * 60_000)
    body = b"y" * (1 << 20)
    async with connected() as (reader, writer, _):
        for _ in range(3):
            writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            await reader.readuntil(b"done")
            writer.write(head + b"transfer-encoding: chunked\r\n\r\n" + b"4\r\nabcd\r\n" * 50_000 + b"0\r\n\r\n")
            await reader.readuntil(b"done")


async def test_a_refused_head_never_stands_within_an_answer() -> None:
    """There the connection is cut off."""

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await endless({**scope, "state": {"left": []}}, receive, send)

    for bad in (b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000, b"\0"):
        async with connected(streams) as (reader, writer, _):
            writer.write(GET)
            await reader.readuntil(b"one")
            writer.write(bad)
            assert (await rest_of(reader)).strip() == b""


async def test_requests_that_wait_for_others_are_answered_in_turn() -> None:
    async with connected(refusal) as (reader, writer, _):
        for _ in range(20):
            writer.write(GET * connection.MOST_PIPELINED)
            for _ in range(connection.MOST_PIPELINED):
                await reader.readuntil(b"done")


async def test_no_more_is_read_while_requests_wait() -> None:
    """uvicorn goes back to reading after each answer, so each would bring in another packet full of requests."""
    gate = asyncio.Semaphore(0)

    async def one_by_one(scope: Any, receive: Any, send: Any) -> None:
        await gate.acquire()
        await answer(send, b"done")

    async with connected(one_by_one) as (reader, writer, connections):
        writer.write(GET * 10)
        for waiting in range(9, 0, -1):
            while not connections or len(next(iter(connections)).pipeline) != waiting:
                await asyncio.sleep(0)
            (client,) = connections
            assert not client.transport.is_reading()
            gate.release()
            await reader.readuntil(b"done")
        while client.pipeline:
            await asyncio.sleep(0)
        assert client.transport.is_reading()


async def test_a_connection_on_which_too_many_wait_is_cut_off() -> None:
    left: list[str] = []
    async with connected(endless, {"left": left}) as (reader, writer, connections):
        writer.write(GET * 5000)
        assert await rest_of(reader) == b""
        assert not connections
        while not left:
            await asyncio.sleep(0.01)
    assert left == ["/"]


@pytest.mark.parametrize("later", [0.0, 0.1])
async def test_the_request_in_work_is_told_that_the_client_left_whatever_waits_behind_it(later: float) -> None:
    """Also if that came when the request was waiting for it already: nothing is read while another waits."""
    left: list[str] = []
    async with connected(endless, {"left": left}) as (_, writer, connections):
        writer.write(GET.replace(b"/ ", b"/first "))
        await asyncio.sleep(later)
        writer.write(GET)
        while not connections or not next(iter(connections)).pipeline:
            await asyncio.sleep(0.01)
        writer.transport.abort()
        while not left:
            await asyncio.sleep(0.01)
    assert left == ["/first"]


def looks(connections: set[Any], stall: float = 1.0) -> str:
    """So many looks at the only connection, one after the other, as make up the time; what the last one says."""
    (client,) = connections
    for _ in range(round(stall / connection.LOOK)):
        assert client.look(stall) == ""
    return str(client.look(stall))


async def unread(writer: Any, connections: set[Any]) -> None:
    """Wait until nothing moves any more on a connection whose client doesn't read."""
    writer.transport.pause_reading()
    before = -1
    while not connections or (now := next(iter(connections)).transport.get_write_buffer_size()) != before or not now:
        before = next(iter(connections)).transport.get_write_buffer_size() if connections else -1
        await asyncio.sleep(0.1)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system can't be told")
async def test_the_system_holds_little_of_what_is_not_read() -> None:
    """It says that there is room only when a third of its buffer is free: of 4 MB, a slow reader takes that in minutes."""
    sent = 0

    async def pieces(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % BIG)]})
        while sent < BIG:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": sent + 65536 < BIG})
            sent += 65536

    async with connected(pieces) as (_, writer, connections):
        writer.write(GET)
        await unread(writer, connections)
        assert sent < 1 << 20


@pytest.mark.parametrize("kept", [b"", b"connection: close\r\n"])
async def test_an_answer_that_nobody_reads_is_given_up(kept: bytes) -> None:
    """Also when it is complete, and when the connection is being closed, which would wait for ever."""

    async def big(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, bytes(BIG))

    async with connected(big) as (reader, writer, connections):
        writer.write(GET.replace(b"\r\n\r\n", b"\r\n" + kept + b"\r\n"))
        await unread(writer, connections)
        (client,) = connections
        assert client.cycle.response_complete
        assert looks(connections, 3.0) == "it has read nothing for 3 s"
        client.cut_off()
        while connections:
            await asyncio.sleep(0.01)
        writer.transport.resume_reading()
        with pytest.raises(ConnectionResetError):  # the system doesn't go on offering what it had
            await reader.read()
        client.cut_off()  # harmless


async def test_who_takes_a_little_between_looks_is_not_cut_off() -> None:
    async def big(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, bytes(BIG))

    async with connected(big) as (reader, writer, connections):
        writer.write(GET)
        await unread(writer, connections)
        (client,) = connections
        for _ in range(5):
            before = client.transport.get_write_buffer_size()
            assert client.look(3.0) == client.look(3.0) == ""
            writer.transport.resume_reading()
            while client.transport.get_write_buffer_size() == before:
                await reader.read(1 << 20)
            await unread(writer, connections)
            assert client.look(3.0) == ""


async def test_a_body_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UPLOAD_TIMEOUT", 3.0)
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
    async with connected() as (reader, writer, connections):
        for _ in range(3):
            writer.write(head)
            await asyncio.sleep(0.05)
            (client,) = connections
            assert [client.look(30.0) for _ in range(3)] == [""] * 3
            writer.write(b"xy")
            await reader.readuntil(b"done")
            assert client.look(30.0) == ""
        writer.write(head + b"x")
        await asyncio.sleep(0.05)
        assert looks(connections, 3.0) == "its request has not come in whole within 3 s"


async def test_a_request_that_is_worked_on_for_long_is_no_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UPLOAD_TIMEOUT", 3.0)
    async with connected(endless, {"left": []}) as (_, writer, connections):
        writer.write(GET)
        await asyncio.sleep(0.05)
        (client,) = connections
        assert {client.look(3.0) for _ in range(20)} == {""}


def test_the_bounds_are_as_documented() -> None:
    assert (connection.MOST_HEAD, connection.MOST_PIPELINED) == (64 << 10, 64)
    assert (connection.KEEP_ALIVE, connection.UPLOAD_TIMEOUT, connection.LOOK) == (150, 60.0, 1.0)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_only_clients_that_know_chunks_get_them(version: bytes) -> None:
    """RFC 9112, section 6.1. For HTTP/1.0 the end of the connection is the end of the answer."""

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        direct = scope["state"]["direct"]()
        assert (direct is None) == (version == b"1.0")
        await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": False})

    async with connected(streams) as (reader, writer, _):
        writer.write(b"GET / HTTP/%b\r\nhost: a\r\nconnection: keep-alive\r\n\r\n" % version)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if version == b"1.0":
            assert b"transfer-encoding" not in head
            assert b"connection: close" in head
            assert await reader.read() == b"data: 1\n\ndata: 2\n\n"
        else:
            assert b"transfer-encoding: chunked" in head
            assert await reader.readuntil(b"0\r\n\r\n") == b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"


async def test_a_whole_answer_keeps_its_length_for_older_clients() -> None:
    async with connected() as (reader, writer, _):
        writer.write(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b"content-length: 4" in head
        assert body == b"done"
