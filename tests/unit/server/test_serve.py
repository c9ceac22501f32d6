"""What the gateway relies on in uvicorn, and connections on which no whole request comes."""

import asyncio
import inspect
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.server import ServerState

from xi_server import serve


def test_uvicorn_still_has_what_direct_writes_use() -> None:
    """Where one of these is gone, streams fall back to plain ASGI: right, but slower. See docs/adr/0006."""
    cycle = inspect.getsource(httptools_impl.RequestResponseCycle.__init__)
    assert "self.chunked_encoding" in cycle
    assert "self.disconnected" in cycle
    assert "write_paused" in inspect.getsource(flow_control.FlowControl)
    protocol = inspect.getsource(httptools_impl.HttpToolsProtocol)
    assert all(name in protocol for name in ("self.cycle", "self.flow", "self.transport", "self.app_state"))


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"])
@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nhost: "])
async def test_a_connection_without_a_whole_head_is_closed(monkeypatch: pytest.MonkeyPatch, before: bytes, begun: bytes) -> None:
    """Nothing else would ever close it, and each holds a descriptor of the gateway's, with or without a key."""
    monkeypatch.setattr(serve, "KEEP_ALIVE", 0.3)
    reader, writer, end = await _connected(timeout_keep_alive=1)
    async with asyncio.timeout(10):
        if before:
            writer.write(before)
            await reader.readuntil(b"done")
        writer.write(begun)
        assert await reader.read() == b""
    await end()


async def test_a_request_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "KEEP_ALIVE", 0.2)
    reader, writer, end = await _connected(timeout_keep_alive=1)
    async with asyncio.timeout(10):
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n")
            await asyncio.sleep(0.5)
            writer.write(b"x")
            await reader.readuntil(b"done")
    await end()


async def _connected(**options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Any]:
    """A connection to an application behind the gateway's protocol, which reads a body and answers `done`, and what ends both."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})

    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, **options)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: serve.Protocol(config, ServerState(), {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

    async def end() -> None:
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    return reader, writer, end
