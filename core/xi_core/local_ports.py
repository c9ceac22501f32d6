"""Ports that this system gives to outgoing connections by itself. Who chooses a port some time before it is bound keeps out of them."""

from __future__ import annotations

from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def ephemeral() -> range:
    """Those ports; empty where the system doesn't tell."""
    try:
        low, high = (int(word) for word in _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return range(0)
    return range(low, high + 1)
