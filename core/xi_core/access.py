"""Who may reach the server: the one rule of `xi serve`, the launcher and the gateway on addresses and keys."""

from __future__ import annotations

from xi_core.errors import ConfigError


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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`. A name other than `localhost` may lead anywhere."""
    import ipaddress  # costs a command's start 3 ms that only servers need

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
