"""A server without a key answers programs, not web pages of other sites."""

from typing import Any

import pytest

from xi_server.origin import OriginGuard


async def status_of(headers: list[tuple[bytes, bytes]], server: str = "127.0.0.1", *listed: str) -> int:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v1/models", "headers": headers, "server": (server, 9997)}
    await OriginGuard(app, listed)(scope, lambda: None, send)  # type: ignore[arg-type,return-value]
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("headers", "server", "status"),
    [
        ([], "127.0.0.1", 200),
        ([(b"host", b"127.0.0.1:9997")], "127.0.0.1", 200),
        ([(b"host", b"localhost:9997")], "127.0.0.1", 200),
        ([(b"host", b"[::1]:9997")], "::1", 200),
        ([(b"host", b"localhost:9997"), (b"origin", b"http://localhost:3000")], "127.0.0.1", 200),
        ([(b"host", b"gpu-box:9997")], "192.0.2.7", 200),
        ([(b"host", b"gpu-box:9997"), (b"origin", b"http://gpu-box:9997")], "192.0.2.7", 200),
        ([(b"host", b"evil.example:9997")], "127.0.0.1", 403),
        ([(b"host", b"[bad")], "127.0.0.1", 403),
        ([(b"host", b"\xff\xfe")], "127.0.0.1", 403),
        ([(b"host", b"localhost:9997"), (b"origin", b"https://evil.example")], "127.0.0.1", 403),
        ([(b"host", b"localhost:9997"), (b"origin", b"null")], "127.0.0.1", 403),
        ([(b"host", b"localhost:9997"), (b"origin", b"http://localhost.evil.example")], "127.0.0.1", 403),
        ([(b"host", b"gpu-box:9997"), (b"origin", b"http://evil.example")], "192.0.2.7", 403),
    ],
)
async def test_who_is_answered(headers: list[tuple[bytes, bytes]], server: str, status: int) -> None:
    assert await status_of(headers, server) == status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (b"localhost:9997", b"https://chat.example.org", 200),
        (b"localhost:9997", b"https://chat.example.org:8443", 403),
        (b"localhost:9997", b"http://chat.example.org", 403),
        (b"localhost:9997", b"https://chat.example.org.evil.example", 403),
        (b"localhost:9997", b"null", 403),
        (b"chat.example.org", b"https://chat.example.org", 403),
    ],
)
async def test_a_listed_site_is_answered(host: bytes, origin: bytes, status: int) -> None:
    """To the letter, and it can't be made to lead here either."""
    assert await status_of([(b"host", host), (b"origin", origin)], "127.0.0.1", "https://chat.example.org") == status
