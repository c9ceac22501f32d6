"""Machines of our own: a network namespace for each, all on one bridge. Needs root and iproute2."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_numbers = itertools.count()


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `ip`. Raises `CalledProcessError`."""
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True, timeout=20)


def why_not() -> str:
    """Why there can be no namespaces here; empty: there can be."""
    if shutil.which("ip") is None:
        return "network namespaces need iproute2's `ip`"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"xi-try-{os.getpid()}"
    try:
        run("netns", "add", name)
        run("-n", name, "link", "add", "br0", "type", "bridge")
    except subprocess.CalledProcessError as error:
        return f"this system gives no network namespace: {error.stderr.strip()}"
    finally:
        run("netns", "del", name, check=False)
    return ""


class Network:
    """Machines `head`, … by name. The bridge is in the head's namespace, and the tests' own machine is on it too."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tag = f"{os.getpid() % 100000}-{next(_numbers)}"
        self.names = ("head", *names)
        third = (os.getpid() + next(_numbers)) % 250
        self._addresses = {name: f"10.213.{third}.{n}" for n, name in enumerate(("", *self.names)) if name}
        self._own = f"10.213.{third}.{len(self._addresses) + 1}"

    def address(self, name: str) -> str:
        """The address of a machine."""
        return self._addresses[name]

    def inside(self, name: str) -> list[str]:
        """The words that run a command on a machine."""
        return ["ip", "netns", "exec", self._space(name)]

    def build(self) -> None:
        """Make them all."""
        for name in self.names:
            run("netns", "add", self._space(name))
            run("-n", self._space(name), "link", "set", "lo", "up")
        head = self._space("head")
        run("-n", head, "link", "add", "br0", "type", "bridge")
        run("-n", head, "addr", "add", f"{self.address('head')}/24", "dev", "br0")
        run("-n", head, "link", "set", "br0", "up")
        for name in self.names[1:]:
            run("link", "add", "eth0", "netns", self._space(name), "type", "veth", "peer", "name", f"to-{name}", "netns", head)
            run("-n", self._space(name), "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            run("-n", self._space(name), "link", "set", "eth0", "up")
            self._plug(f"to-{name}")
        run("link", "add", self._outside, "type", "veth", "peer", "name", "to-tests", "netns", head)
        run("addr", "add", f"{self._own}/24", "dev", self._outside)
        run("link", "set", self._outside, "up")
        self._plug("to-tests")

    def remove(self) -> None:
        """Remove them all, whatever there is of them. Their devices go with them."""
        for name in self.names:
            run("netns", "del", self._space(name), check=False)
        run("link", "del", self._outside, check=False)

    @contextmanager
    def unplugged(self, name: str) -> Iterator[None]:
        """A machine that nobody reaches while the block runs, and that isn't told so: its own link stays up."""
        run("-n", self._space("head"), "link", "set", f"to-{name}", "nomaster")
        try:
            yield
        finally:
            run("-n", self._space("head"), "link", "set", f"to-{name}", "master", "br0")

    @contextmanager
    def down(self, name: str) -> Iterator[None]:
        """The same by `ip link set down`, which the machine's own link follows."""
        run("-n", self._space("head"), "link", "set", f"to-{name}", "down")
        try:
            yield
        finally:
            run("-n", self._space("head"), "link", "set", f"to-{name}", "up")

    @contextmanager
    def apart(self, one: str, other: str) -> Iterator[None]:
        """Two machines that don't reach each other while the block runs; all else stands. What is sent vanishes (blackhole)."""
        both = [(one, other), (other, one)]
        for here, there in both:
            run("-n", self._space(here), "route", "add", "blackhole", f"{self.address(there)}/32")
        try:
            yield
        finally:
            for here, there in both:
                run("-n", self._space(here), "route", "del", "blackhole", f"{self.address(there)}/32")

    @property
    def _outside(self) -> str:
        return f"xi{self._tag}"

    def _space(self, name: str) -> str:
        return f"xi-{self._tag}-{name}"

    def _plug(self, device: str) -> None:
        run("-n", self._space("head"), "link", "set", device, "master", "br0")
        run("-n", self._space("head"), "link", "set", device, "up")
