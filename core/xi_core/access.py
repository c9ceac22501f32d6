"""Who may reach the server: the rules of `xi serve`, the launcher and the gateway on addresses, keys and web pages."""

from __future__ import annotations

import re

from xi_core.errors import ConfigError

ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_OWN_PORTS = {"http": ":80", "https": ":443"}
"""Ports that a browser leaves out of an origin."""


def check_access(host: str, key: str, no_auth: bool) -> None:
    """Refuse an open server off loopback, and keys that can't be. Raises `ConfigError`."""
    if key and no_auth:
        raise ConfigError("an API key is given (--api-key or XI_API_KEY) and --no-auth too; leave one out")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError("the API key must be printable ASCII without spaces: it travels in an HTTP header")
    if not key and not no_auth and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines: set a key with XI_API_KEY (or --api-key), "
            f"or say --no-auth to let everybody in who reaches the port"
        )


def allowed_origins(text: str, key: str) -> frozenset[str]:
    """The origins in `XI_ALLOW_ORIGINS` as browsers write them, or `*` alone. Raises `ConfigError`, naming the setting.

    `*` wants a key: without one, what keeps any web page from using its visitor's own server is its origin.
    """
    found = frozenset(_origin(part.strip()) for part in text.split(",") if part.strip())
    if ANY_ORIGIN not in found:
        return found
    if not key:
        raise ConfigError(
            "XI_ALLOW_ORIGINS (--allow-origin): '*' lets every web page in, and there is no key that would keep any out: "
            "set one with XI_API_KEY (or --api-key), or name the pages' origins",
            param="XI_ALLOW_ORIGINS",
        )
    return frozenset({ANY_ORIGIN})


def _origin(text: str) -> str:
    if text == ANY_ORIGIN:
        return text
    match = _ORIGIN.fullmatch(text.lower())
    if match is None or (match[2] and int(match[2][1:]) > 65535):
        raise ConfigError(
            f"XI_ALLOW_ORIGINS (--allow-origin): '{text}' is no origin; write SCHEME://HOST or SCHEME://HOST:PORT, "
            f"as in https://chat.example.org, with no path and no slash at the end, or '*'",
            param="XI_ALLOW_ORIGINS",
        )
    scheme, port = match.groups()
    return match[0].removesuffix(port) if port and port == _OWN_PORTS.get(scheme) else match[0]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`. A name other than `localhost` may lead anywhere."""
    import ipaddress  # costs a command's start 3 ms that only servers need

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
