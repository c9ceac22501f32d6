"""`OriginGuard`: the outermost layer of a gateway without a key. It keeps web pages from using the visitor's own server.

A page of any site can make its visitor's browser send requests to 127.0.0.1. Two headers that a page can't forge give it away: `Origin`
(RFC 6454), which names the page's site, and `Host`, which names another site where that site's own name was made to lead here (DNS
rebinding).
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from xi_core.access import is_loopback
from xi_core.errors import Forbidden
from xi_server.asgi import App, Receive, Scope, Send, header, new_request_id, send_error


class OriginGuard:
    """Raw ASGI around `app`. Over loopback only loopback names are taken for Host; an Origin must be loopback's, its own or listed."""

    def __init__(self, app: App, listed: Collection[str] = ()) -> None:
        """`listed`: the origins that the operator lets in."""
        self._app = app
        self._listed = frozenset(origin.encode() for origin in listed)
        self.denied = 0
        """Requests that were turned away, with 403."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            self.denied += 1
            await send_error(send, refusal.body(), new_request_id())

    def _refusal(self, scope: Scope) -> Forbidden | None:
        host, origin = header(scope, b"host"), header(scope, b"origin")
        name = _name(b"//" + host) if host is not None else ""
        reached = (scope.get("server") or ("",))[0]
        if name is None or (name and is_loopback(reached) and not is_loopback(name)):
            return Forbidden(
                "this server has no key and answers on this machine's own names only (localhost, 127.0.0.1); "
                "behind a proxy set XI_API_KEY, or let the proxy send Host: localhost"
            )
        if origin is None:
            return None
        site = _name(origin)
        if origin in self._listed or (site and (is_loopback(site) or site == name)):
            return None
        return Forbidden(
            "this server has no key and takes no requests from web pages of other sites; its operator lets a site in by naming its origin "
            "in XI_ALLOW_ORIGINS (or --allow-origin), or has a proxy serve the page and xi at one address, with XI_API_KEY set"
        )


def _name(url: bytes) -> str | None:
    """The host name in a URL, lower-case; empty where it has none (`null`), None where it can't be read."""
    try:
        return urlsplit(url.decode("ascii")).hostname or ""
    except ValueError:
        return None
