"""Ports of this machine that are kept for the ranks of sharded replicas, from `XI_PORT_RANGE`."""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import re
import socket

from xi_core.errors import ConfigError, LaunchFailed
from xi_core.local_ports import ephemeral

log = logging.getLogger(__name__)

BLOCK = 8
"""Ports that one rank gets: engines use the first one or two, and some count on from there."""
TRIES = 64


class PortRange:
    """The ports `first` to `last`, from which blocks are taken."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """From `20000-29999`. Raises `ConfigError`. Warns where the system itself gives out such ports to anybody."""
        found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text.strip())
        first, last = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1024 <= first < last <= 65535 or last - first + 1 < BLOCK:
            raise ConfigError(
                f"XI_PORT_RANGE={text!r}: write it as FIRST-LAST, from 1024 to 65535, with {BLOCK} ports at least", param="XI_PORT_RANGE"
            )
        given = ephemeral()
        if first < given.stop and given.start <= last:
            low, high = given.start, given.stop - 1
            log.warning("XI_PORT_RANGE=%s overlaps the ports that this system gives to outgoing connections (%d-%d)", text, low, high)
        return cls(first, last)

    def take(self, host: str) -> PortBlock:
        """A block of ports that are free at `host`, an IP address, held until it is released. Raises `LaunchFailed`."""
        count = (self.last - self.first + 1) // BLOCK
        for number in random.sample(range(count), min(count, TRIES)):  # so that two workers of one machine seldom try the same
            block = PortBlock.bind(host, self.first + number * BLOCK)
            if block is not None:
                return block
        raise LaunchFailed(
            f"no block of {BLOCK} free ports was found at {host} from {self.first} to {self.last}; widen XI_PORT_RANGE, or free some"
        )


class PortBlock:
    """Consecutive ports that this process holds bound, so that nobody else gets them."""

    def __init__(self, held: list[socket.socket]) -> None:
        self.ports = tuple(int(sock.getsockname()[1]) for sock in held)
        self._held = held

    @classmethod
    def bind(cls, host: str, first: int) -> PortBlock | None:
        """Bind `BLOCK` ports from `first`; None where one is taken. Raises `LaunchFailed` for an address of another machine."""
        held: list[socket.socket] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for port in range(first, first + BLOCK):
            sock = socket.socket(family, socket.SOCK_STREAM)
            held.append(sock)
            try:
                sock.bind((host, port))
            except OSError as error:
                for one in held:
                    one.close()
                if error.errno == errno.EADDRNOTAVAIL:
                    why = "is no address of this machine, so ranks can't listen there; start the worker with one of its own: --host"
                    raise LaunchFailed(f"{host} {why}") from None
                return None
        return cls(held)

    def release(self) -> None:
        """Let the rank's own process bind them."""
        for sock in self._held:
            sock.close()
        self._held = []


def interface_of(host: str) -> str:
    """The name of this machine's network interface that has the IPv4 address `host`; empty where that can't be told."""
    try:
        import fcntl
        import struct

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):
                    answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR, netdevice(7)
                    if socket.inet_ntoa(answer[20:24]) == host:
                        return name
    except (ImportError, OSError):
        return ""
    return ""
