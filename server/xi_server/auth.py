"""`BearerAuth`: the outermost layer of the gateway where a key is set. It lets nothing through that it does not know to be allowed."""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from xi_core.errors import AuthenticationFailed
from xi_server.asgi import App, Receive, Scope, Send, header, new_request_id, send_whole
from xi_server.routes.answers import control_error

EXEMPT = frozenset({"/health", "/ready", "/v1/cluster/auth"})
"""The only paths that need no key, compared whole: probes of load balancers carry none, and clients ask whether a key is needed."""


class BearerAuth:
    """Raw ASGI around `app`. Asks for `Authorization: Bearer KEY` on every path but `EXEMPT`; keeps only the key's hash.

    Only the path that the router will see decides, never the Host header or a URL built from it.
    """

    def __init__(self, app: App, api_key: str) -> None:
        self._app = app
        self._hash = _digest(api_key.encode())
        self.denied = 0
        """Requests that were turned away, with 401."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._allows(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            # Xinference's clients need `detail`; others don't mind it.
            self.denied += 1
            error = self._refusal(scope).body()
            body = msgspec.json.encode(control_error(error))
            await send_whole(send, error.status, body, new_request_id(), extra=[(b"www-authenticate", b"Bearer")])
        else:
            self.denied += 1
            await send({"type": "websocket.close", "code": 1008})

    def _allows(self, scope: Scope) -> bool:
        if scope["type"] == "http" and scope["path"] in EXEMPT and not scope.get("root_path"):
            return True
        given = _bearer(scope)
        return given is not None and hmac.compare_digest(_digest(given), self._hash)

    @staticmethod
    def _refusal(scope: Scope) -> AuthenticationFailed:
        if header(scope, b"authorization") is None:
            return AuthenticationFailed("no API key; send it as the header 'Authorization: Bearer KEY'")
        return AuthenticationFailed("the API key is wrong, or the Authorization header doesn't read 'Bearer KEY'")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _bearer(scope: Scope) -> bytes | None:
    """The token of the only Authorization header; None where there is none, several, or another scheme."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, token = values[0].strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token.strip() else None
