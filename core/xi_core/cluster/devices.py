"""Device probes: how a worker finds its accelerators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from msgspec import Struct

FAKE = "fake"
"""Kind of a device that XI_FAKE_DEVICES made up, and the beginning of its id."""


class Device(Struct, kw_only=True, gc=False):
    """One accelerator of a worker. `id` is unique on its worker (`cuda:0`); memory in bytes; utilisation 0 to 1."""

    id: str
    kind: str
    name: str = ""
    memory: int = 0
    memory_free: int = 0
    utilisation: float = 0.0
    domain: str = ""
    """Devices of one worker with the same domain are joined by its fastest link (NVLink, xGMI)."""
    uuid: str = ""
    """The driver's own name for it, where it has one."""


def real(devices: Iterable[str]) -> list[str]:
    """These devices' ids without those that are made up: no engine may see them."""
    return [name for name in devices if not name.startswith(FAKE)]


class DeviceProbe(ABC):
    """Finds devices of one kind. Called in a worker at its start and now and then; must not load an engine library."""

    @abstractmethod
    def devices(self) -> list[Device]:
        """The devices of this kind on this machine; none is no error. May raise `ConfigError`, which stops the worker."""


class DeviceProbeInfo(Struct, kw_only=True):
    """Descriptor of a device probe: its name and `module:Class`."""

    name: str
    probe: str
    description: str = ""
