"""Web pages of sites that the operator lets in: preflights, headers on every answer, and nothing where no site is named."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from xi_core.errors import ConfigError
from xi_core.wire.frames import Data, End, Open
from xi_server.auth import BearerAuth
from xi_server.cors import Cors
from xi_server.origin import OriginGuard

PAGE = "https://chat.example.org"
KEY = "sk-secret-key"
ASKED = "authorization,content-type,x-request-id,x-stainless-os,x-stainless-retry-count"
EVENT = b'data: {"choices":[]}\n\n'
SIMPLE = {"access-control-allow-origin": PAGE, "access-control-expose-headers": "x-request-id, retry-after", "vary": "origin"}

Headers = list[tuple[bytes, bytes]]


def sent(origin: str | None = PAGE, key: str = KEY, **more: str) -> Headers:
    """The headers of a request from a page; `_` in a name stands for `-`."""
    named = {
        "host": "localhost:9997",
        **({"origin": origin} if origin else {}),
        **({"authorization": f"Bearer {key}"} if key else {}),
        **more,
    }
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]


def preflight(kit: Any, origin: str | None = PAGE, path: str = "/v1/chat/completions", asked: str = ASKED) -> Any:
    more = {"access_control_request_method": "POST", **({"access_control_request_headers": asked} if asked else {})}
    return kit.Call(path=path, method="OPTIONS", headers=sent(origin, key="", **more))


def of_cors(call: Any) -> dict[str, str]:
    """What of an answer's headers is for browsers."""
    return {name: value for name, value in call.answer_headers.items() if name.startswith("access-control") or name == "vary"}


@pytest.fixture
def page(make_stage: Any, replica: Any, kit: Any) -> Callable[..., Awaitable[Any]]:
    """Makes a gateway with a model `m`, a key and one listed site."""

    async def make(script: Any = None, **settings: Any) -> Any:
        stage = await make_stage(**{"api_key": KEY, "allow_origins": PAGE, **settings})
        await stage.serve("m", replica(script=script or kit.answering()))
        return stage

    return make


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/metrics", "/nothing"])
async def test_a_preflight_needs_no_key(page: Any, kit: Any, path: str) -> None:
    stage = await page(allow_origins=f"{PAGE},http://localhost:3000")
    call = await preflight(kit, path=path).run(stage.app)
    assert (call.status, call.body_text, call.whole) == (204, b"", True)
    assert call.answer_headers["access-control-allow-origin"] == PAGE
    assert {"GET", "POST", "PUT", "DELETE"} <= set(call.answer_headers["access-control-allow-methods"].split(", "))
    assert call.answer_headers["access-control-allow-headers"] == ASKED
    assert call.answer_headers["access-control-max-age"] == "7200"
    assert "content-length" not in call.answer_headers, "a 204 has none"
    assert "access-control-allow-credentials" not in call.answer_headers
    assert (stage.supervisor.asked, stage.supervisor.launched) == ([], [])
    other = await preflight(kit, "http://localhost:3000").run(stage.app)
    assert other.answer_headers["access-control-allow-origin"] == "http://localhost:3000"


async def test_a_preflight_that_asks_for_no_headers(page: Any, kit: Any) -> None:
    call = await preflight(kit, asked="").run((await page()).app)
    assert call.status == 204
    assert "access-control-allow-headers" not in call.answer_headers


async def test_preflights_vary_with_what_they_ask_for() -> None:
    """`Call` keeps one header of a name; here each counts."""
    heads: list[Any] = []

    async def send(message: Any) -> None:
        heads.append(message)

    headers = sent(access_control_request_method="GET", access_control_request_headers="x")
    scope = {"type": "http", "method": "OPTIONS", "path": "/", "headers": headers}
    await Cors(nowhere, {PAGE})(scope, nothing, send)
    assert [value for name, value in heads[0]["headers"] if name == b"vary"] == [b"origin", b"access-control-request-headers"]


async def nowhere(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nothing gets so far")


async def nothing() -> Any:
    return {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "status"),
    [
        ("POST", "/v1/chat/completions", b'{"model":"m","messages":[]}', KEY, 200),
        ("GET", "/v1/models", None, KEY, 200),
        ("GET", "/health", None, "", 200),
        ("POST", "/v1/chat/completions", b"{}", "", 401),
        ("GET", "/v1/models", None, "wrong", 401),
        ("OPTIONS", "/v1/models", None, "", 401),
        ("POST", "/v1/chat/completions", b"{", KEY, 400),
        ("POST", "/v1/chat/completions", b'{"model":"other"}', KEY, 404),
        ("GET", "/nothing", None, KEY, 404),
        ("GET", "/v1/chat/completions", None, KEY, 405),
        ("PATCH", "/v1/models", None, KEY, 405),
        ("POST", "/v1/chat/completions", b"x" * 2000, KEY, 413),
        ("POST", "/v1/models", b"x" * 2000, KEY, 413),
    ],
)
async def test_every_answer_can_be_read(page: Any, kit: Any, method: str, path: str, body: bytes | None, key: str, status: int) -> None:
    stage = await page(max_body=1024)
    call = await kit.Call(path=path, method=method, body=body, headers=sent(key=key)).run(stage.app)
    assert (call.status, of_cors(call)) == (status, SIMPLE)
    assert call.answer_headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_replicas_errors_can_be_read(page: Any, kit: Any, status: int) -> None:
    stage = await page(kit.answering(status, b'{"error":{}}', 3.0))
    call = await stage.ask(headers=sent())
    assert (call.status, of_cors(call), call.answer_headers["retry-after"]) == (status, SIMPLE, "3")


async def test_an_unexpected_error_can_be_read(page: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = await page()

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(stage.gateway.table, "find", broken)
    monkeypatch.setattr(stage.gateway, "unready", broken)
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/ready")):
        call = await kit.Call(path=path, method=method, body=kit.chat(), headers=sent()).run(stage.app)
        assert (call.status, of_cors(call)) == (500, SIMPLE)


async def test_a_stream_has_the_headers_once_and_its_chunks_are_untouched(page: Any, kit: Any) -> None:
    def stream(replica: Any, submit: Any) -> None:
        replica.send(Open(submit.id, 200, kit.SSE), *(Data(submit.id, EVENT, 1) for _ in range(3)), End(submit.id))

    stage = await page(stream)
    call = await stage.ask(kit.chat(stream=True), headers=sent())
    assert (call.status, call.body_text, call.whole) == (200, EVENT * 3, True)
    assert of_cors(call) == SIMPLE
    assert call.answer_headers["content-type"] == kit.SSE


async def test_a_chunk_costs_no_coroutine() -> None:
    """What the server's `send` gives for a chunk is what the token path awaits."""

    async def send(message: Any) -> None:
        sent_messages.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        chunk = {"type": "http.response.body", "body": b"x", "more_body": False}
        given.append(awaitable := send(chunk))
        await awaitable
        assert sent_messages == [chunk]
        assert sent_messages[0] is chunk

    sent_messages: list[Any] = []
    given: list[Any] = []
    await Cors(app, {PAGE})({"type": "http", "method": "POST", "path": "/", "headers": sent()}, nothing, send)
    assert given[0].cr_code is send.__code__


@pytest.mark.parametrize("origin", ["https://evil.example", "https://chat.example.org:444", "http://chat.example.org", "null", None])
async def test_other_sites_are_told_nothing(page: Any, kit: Any, origin: str | None) -> None:
    """With a key that is right the answer is as ever, and only says that it differs from site to site."""
    stage = await page()
    call = await kit.Call(path="/v1/models", method="GET", headers=sent(origin)).run(stage.app)
    assert (call.status, of_cors(call)) == (200, {"vary": "origin"})
    asked = await preflight(kit, origin).run(stage.app)
    assert (asked.status, of_cors(asked)) == (401, {"vary": "origin"})


@pytest.mark.parametrize("origin", ["https://evil.example", "https://chat.example.org.evil.example", "null"])
async def test_without_a_key_other_sites_are_refused_as_ever(page: Any, kit: Any, origin: str) -> None:
    stage = await page(api_key="")
    for call in (kit.Call(path="/v1/models", method="GET", headers=sent(origin, key="")), preflight(kit, origin)):
        await call.run(stage.app)
        assert (call.status, call.error["code"], of_cors(call)) == (403, "forbidden", {"vary": "origin"})
        assert "XI_ALLOW_ORIGINS" in call.error["message"]


async def test_without_a_key_a_listed_site_is_let_in(page: Any, kit: Any) -> None:
    stage = await page(api_key="")
    call = await stage.ask(headers=sent(key=""))
    assert (call.status, call.json, of_cors(call)) == (200, {"ok": True}, SIMPLE)
    rebound = await kit.Call(path="/v1/models", method="GET", headers=sent(key="", host="evil.example")).run(stage.app)
    assert (rebound.status, of_cors(rebound)) == (403, SIMPLE), "whose site was made to lead here is refused, and can read why"


async def test_any_site(page: Any, kit: Any) -> None:
    stage = await page(allow_origins="*")
    anybody = {"access-control-allow-origin": "*", "access-control-expose-headers": "x-request-id, retry-after"}
    for origin in (PAGE, "null", None):
        call = await stage.ask(headers=sent(origin))
        assert (call.status, of_cors(call)) == (200, anybody)
    locked = await stage.ask(headers=sent(key="wrong"))
    assert (locked.status, of_cors(locked)) == (401, anybody)
    asked = await preflight(kit).run(stage.app)
    assert (asked.status, asked.answer_headers["access-control-allow-origin"]) == (204, "*")
    assert asked.answer_headers["access-control-allow-headers"] == ASKED
    assert (await preflight(kit, None).run(stage.app)).status == 401, "no browser asks without an origin"


async def test_any_site_without_a_key_is_refused_at_start(page: Any) -> None:
    with pytest.raises(ConfigError, match="XI_ALLOW_ORIGINS"):
        await page(allow_origins="*", api_key="")


async def test_where_no_site_is_named_nothing_is_there(make_stage: Any, kit: Any) -> None:
    open_stage, locked = await make_stage(), await make_stage(api_key=KEY)
    assert (type(open_stage.app), type(locked.app)) == (OriginGuard, BearerAuth), "no layer around them"
    for stage, status in ((open_stage, 403), (locked, 401)):
        asked = await preflight(kit).run(stage.app)
        assert (asked.status, of_cors(asked)) == (status, {})
    own = await preflight(kit, "http://localhost:3000").run(open_stage.app)
    assert (own.status, of_cors(own)) == (405, {})
    call = await kit.Call(path="/v1/models", method="GET", headers=sent()).run(locked.app)
    assert (call.status, of_cors(call)) == (200, {})


async def test_what_is_no_request_passes() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        raise AssertionError(message)

    await Cors(app, {PAGE})({"type": "websocket", "path": "/", "headers": []}, nothing, send)
    assert seen == ["websocket"]
