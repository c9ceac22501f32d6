"""Join tokens, and what is said at the join port: how a machine that no one knows yet becomes a member of a cluster.

A token is a secret for one use. Who has it can dial the join port, since it holds the supervisor's public key; there the secret is
exchanged for a place of the caller's own key on the allow-list. The supervisor's side is `admission`, the other `membership`.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets

import msgspec
from msgspec import Struct

from xi_core.api.control import MemberRole
from xi_core.errors import ConfigError
from xi_core.transport.security import check_key
from xi_core.transport.vocabulary import Vocabulary

PREFIX = "xi1."
"""Of every token; the number is its version."""
LONGEST = 4096
"""Characters of a token, at most."""
LARGEST = 16 * 1024
"""Bytes of a message at the join port, at most: who sends it may be anybody."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What workers and gateways may be called: names end up in file names and logs."""


class JoinToken(Struct, array_like=True, frozen=True):
    """What a token holds. `expires`, in seconds since 1970, is by the supervisor's clock, and only judged by it."""

    endpoints: list[str]
    """The cluster port, as `tcp://HOST:PORT`; the join port is the next one."""
    server: str
    """The supervisor's public key."""
    secret: bytes
    expires: float
    role: MemberRole

    def __repr__(self) -> str:
        return f"JoinToken(endpoints={self.endpoints!r}, role={self.role!r})"

    def text(self) -> str:
        """The token as it is passed on."""
        return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")


class Join(Struct, tag="join", kw_only=True):
    """Put the key of this connection on the allow-list. Whose it is, the encryption has proven."""

    secret: bytes
    name: str
    role: MemberRole


class Joined(Struct):
    """It stands there now."""


VOCABULARY = Vocabulary({Join: Joined}, [])
"""All that can be said at the join port."""


def new_secret() -> bytes:
    """The secret of a new token."""
    return secrets.token_bytes(32)


def read(text: str) -> JoinToken:
    """The token in `text`. Raises `ConfigError`."""
    text = text.strip()
    bad = ConfigError(
        "the join token can't be read; copy it whole, from `xi1.` to its end, or make another with `xi join-token`", param="token"
    )
    if not text.startswith(PREFIX) or len(text) > LONGEST:
        raise bad
    body = text.removeprefix(PREFIX)
    try:
        token = msgspec.msgpack.decode(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True), type=JoinToken)
        check_key(token.server, "the supervisor's key in the token")
        for endpoint in token.endpoints:
            join_port(endpoint)
    except (binascii.Error, ValueError, msgspec.DecodeError, ConfigError):
        raise bad from None
    if not token.endpoints:
        raise bad
    return token


def check_name(name: str) -> str:
    """`name`, if a worker or gateway may be called so. Raises `ConfigError`."""
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            f"'{name[:80]}' is no name: letters, digits, dots, dashes and underscores, 64 at most; choose one with --name", param="name"
        )
    return name


def join_port(endpoint: str) -> str:
    """The endpoint of the join port beside a cluster port. Raises `ConfigError` for what is no `tcp://HOST:PORT`."""
    found = re.fullmatch(r"(tcp://(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+)):(\d{1,5})", endpoint)
    if found is None or not 0 < int(found[2]) < 65535:
        raise ConfigError(f"'{endpoint[:200]}' is no endpoint of a cluster; write tcp://HOST:PORT", param="endpoint")
    return f"{found[1]}:{int(found[2]) + 1}"
