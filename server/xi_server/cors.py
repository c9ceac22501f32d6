"""`Cors`: the outermost layer of a gateway whose operator lets web pages in (XI_ALLOW_ORIGINS); elsewhere there is none.

A browser lets a page of another site read an answer only where the answer names that site, and asks before most requests (a preflight).
This layer only says who may read: requests still need the key, and those of sites that aren't listed are treated as they are without it.
Starlette has such a layer, which answers those sites' preflights itself and awaits one more coroutine for each chunk of a stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection

from xi_core.access import ANY_ORIGIN
from xi_server.asgi import App, Headers, Message, Receive, Scope, Send, header, new_request_id

METHODS = b"GET, HEAD, POST, PUT, DELETE"
EXPOSED = b"x-request-id, retry-after"
MAX_AGE = b"7200"
"""Seconds in which a browser need not ask again: the longest that Chromium takes."""


class Cors:
    """Raw ASGI around `app`: the headers on every answer, and an answer to each preflight of a listed site. Cookies are never asked for."""

    def __init__(self, app: App, origins: Collection[str]) -> None:
        """`origins` as `xi_core.access.allowed_origins` gives them."""
        self._app = app
        self._any = ANY_ORIGIN in origins
        self._listed: dict[bytes, Headers] = {} if self._any else {origin.encode(): _readable(origin.encode()) for origin in origins}
        # What others get: with a list, caches must know that the same answer differs from site to site.
        self._others = _readable(b"*") if self._any else [(b"vary", b"origin")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = header(scope, b"origin") or b""
        added = self._listed.get(origin, self._others)
        if scope["method"] == "OPTIONS" and self._lets_in(origin) and header(scope, b"access-control-request-method"):
            await _answer_preflight(scope, send, added)
            return

        def tagged(message: Message) -> Awaitable[None]:  # no coroutine of its own: it is called for each chunk
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            return send(message)

        await self._app(scope, receive, tagged)

    def _lets_in(self, origin: bytes) -> bool:
        return origin in self._listed or (self._any and origin != b"")


def _readable(origin: bytes) -> Headers:
    """What lets pages of `origin` read an answer."""
    found = [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]
    return found if origin == b"*" else [*found, (b"vary", b"origin")]


async def _answer_preflight(scope: Scope, send: Send, added: Headers) -> None:
    """204. Preflights carry no key, and reach nothing behind this layer."""
    headers = [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", MAX_AGE),
        (b"x-request-id", new_request_id().encode()),
        *added,
    ]
    asked = header(scope, b"access-control-request-headers")
    if asked:  # each as asked: clients send many of their own (`x-stainless-…`), and `*` would not cover Authorization
        headers += [(b"access-control-allow-headers", asked), (b"vary", b"access-control-request-headers")]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
