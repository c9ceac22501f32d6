"""Auth: denies by default, on every route there is."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.routing import Route

from xi_server.app import control_app
from xi_server.auth import EXEMPT
from xi_server.dispatch import TOKEN_PATHS

KEY = "sk-secret-key"


@pytest.fixture
async def locked(make_stage: Any, replica: Any, kit: Any) -> Any:
    stage = await make_stage(api_key=KEY)
    await stage.serve("m", replica(script=kit.answering()))
    return stage


def routes(gateway: Any) -> list[tuple[str, str]]:
    """Every method and path of the table, with the token path."""
    found: list[tuple[str, str]] = [("POST", path) for path in TOKEN_PATHS]
    pending = list(control_app(gateway).routes)
    while pending:
        route = pending.pop()
        if isinstance(route, Route) or hasattr(route, "methods"):
            found += [(method, route.path.replace("{uid}", "m")) for method in route.methods]
        pending += getattr(getattr(route, "original_router", None), "routes", [])
    return found


async def test_every_route_asks_for_the_key(locked: Any, kit: Any) -> None:
    table = routes(locked.gateway)
    assert {path for _, path in table} >= {
        "/v1/models",
        "/v1/models/m",
        "/v1/engines",
        "/v1/cluster/info",
        "/metrics",
        "/docs",
        "/openapi.json",
    }
    for method, path in table:
        if path in EXEMPT:
            continue
        call = await kit.Call(path=path, method=method, body=b"{}").run(locked.app)
        assert (call.status, call.error["code"]) == (401, "invalid_api_key"), (method, path)
        assert call.answer_headers["www-authenticate"] == "Bearer"
        assert call.json["detail"] == call.error["message"], "where Xinference's clients look"
    assert locked.supervisor.launched == []
    assert locked.supervisor.asked == []


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_probes_need_no_key(locked: Any, kit: Any, path: str) -> None:
    assert (await kit.Call(path=path, method="GET").run(locked.app)).status == 200


@pytest.mark.parametrize(
    "path",
    ["/health/", "//health", "/health/../v1/models", "/v1/models/../../health", "/HEALTH", "/ready/x", "", "/health%2f", "/health;/v1"],
)
async def test_paths_like_a_probes_are_no_way_in(locked: Any, kit: Any, path: str) -> None:
    assert (await kit.Call(path=path, method="GET").run(locked.app)).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", f"Bearer {KEY}x".encode())],
        [(b"authorization", f"Basic {KEY}".encode())],
        [(b"authorization", KEY.encode())],
        [(b"authorization", b"Bearer \xff\xfe\x00")],
        [(b"authorization", f"Bearer {KEY}".encode()), (b"authorization", b"Bearer other")],
        [(b"x-api-key", KEY.encode())],
        [(b"host", b"/health?"), (b"x-forwarded-path", b"/health"), (b"x-original-url", b"/health")],
        [(b"host", b"")],
        [(b"host", b"a/health#@b:99999")],
    ],
)
async def test_wrong_and_malformed_headers_are_refused(locked: Any, kit: Any, headers: list[tuple[bytes, bytes]]) -> None:
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
        call = await kit.Call(path=path, method=method, body=kit.chat(), headers=headers).run(locked.app)
        assert (call.status, call.error["type"]) == (401, "authentication_error")
        assert KEY not in call.body_text.decode()


@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY} "])
@pytest.mark.parametrize("host", [b"localhost", b"a/health#@b:99999", b""])
async def test_the_right_key_lets_in_whatever_the_host_header(locked: Any, kit: Any, value: str, host: bytes) -> None:
    headers = [(b"host", host), (b"authorization", value.encode())]
    call = await kit.Call(body=kit.chat(), headers=headers).run(locked.app)
    assert (call.status, call.json) == (200, {"ok": True})
    listed = await kit.Call(path="/v1/models", method="GET", headers=headers).run(locked.app)
    assert listed.status == 200
    missing = await kit.Call(path="/nothing", method="GET", headers=headers).run(locked.app)
    assert (missing.status, missing.error["code"]) == (404, "not_found")


async def test_who_is_turned_away_is_counted(locked: Any, make_stage: Any, kit: Any) -> None:
    for headers in ([], [(b"authorization", b"Bearer wrong")]):
        await kit.Call(body=kit.chat(), headers=headers).run(locked.app)
    shown = await kit.Call(path="/metrics", method="GET", headers=[(b"authorization", f"Bearer {KEY}".encode())]).run(locked.app)
    assert b'xi_requests_denied_total{status="401"} 2' in shown.body_text
    keyless = await make_stage()
    await kit.Call(body=kit.chat(), headers=[(b"origin", b"https://evil.example")]).run(keyless.app)
    assert b'xi_requests_denied_total{status="403"} 1' in (await keyless.control("GET", "/metrics")).body_text


async def test_websockets_are_closed(locked: Any) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await locked.app({"type": "websocket", "path": "/health", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_without_a_key_all_is_open(stage: Any, kit: Any) -> None:
    assert (await kit.Call(path="/v1/models", method="GET").run(stage.app)).status == 200
