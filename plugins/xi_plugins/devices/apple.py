"""The `apple` device probe: the GPU of a Mac with Apple's own chip, by `sysctl` and `vm_stat`. Called by a worker.

Its memory is the machine's. Metal lets a process have two thirds of it, or three quarters where there is more than 36 GiB
(`recommendedMaxWorkingSetSize`), unless `iogpu.wired_limit_mb` says another figure.
"""

from __future__ import annotations

import platform
import re

from xi_core.cluster.devices import Device, DeviceProbe
from xi_plugins.devices.tools import number, output

MUCH = 36 * 2**30
NAMES = ("hw.memsize", "machdep.cpu.brand_string", "iogpu.wired_limit_mb")
AVAILABLE = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
"""Pages that a process can have: free ones, and those that hold only copies."""


class AppleProbe(DeviceProbe):
    """The GPU of this Mac; none on other machines."""

    def devices(self) -> list[Device]:
        if platform.system() != "Darwin" or platform.machine() != "arm64":
            return []
        settings, pages = output("/usr/sbin/sysctl", *NAMES), output("/usr/bin/vm_stat")
        return parse(settings or "", pages or "")


def parse(settings: str, pages: str) -> list[Device]:
    """The device of what `sysctl` and `vm_stat` print; none where the memory isn't told."""
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in settings.splitlines())}
    whole = int(number(values.get("hw.memsize")))
    if not whole:
        return []
    limit = int(number(values.get("iogpu.wired_limit_mb"))) * 2**20 or (whole * 3 // 4 if whole > MUCH else whole * 2 // 3)
    memory = min(whole, limit)
    free = _available(pages)
    return [
        Device(
            id="mps:0",
            kind="mps",
            name=values.get("machdep.cpu.brand_string", ""),
            memory=memory,
            memory_free=memory if free is None else min(memory, free),
        )
    ]


def _available(pages: str) -> int | None:
    """Bytes; None where `vm_stat` can't be read."""
    size = re.search(r"page size of (\d+) bytes", pages)
    if size is None:
        return None
    counts = {name.strip(): int(number(value.strip().rstrip("."))) for name, _, value in (x.partition(":") for x in pages.splitlines())}
    return int(size[1]) * sum(counts.get(name, 0) for name in AVAILABLE)
