"""The `fake` device probe: devices made up by XI_FAKE_DEVICES. Placement and reservations are real on them, engines run on the CPU."""

from __future__ import annotations

import re

from xi_core.byte_size import parse_bytes
from xi_core.cluster.devices import FAKE, Device, DeviceProbe
from xi_core.config import settings
from xi_core.errors import ConfigError

VARIABLE = "XI_FAKE_DEVICES"
MOST = 1024
_COUNTED = re.compile(r"(\d+)x(.+)")
_NAMED = re.compile(r"([a-z]+):(\d+)=(.+)")


class FakeProbe(DeviceProbe):
    """The devices that the setting describes. Raises `ConfigError`."""

    def devices(self) -> list[Device]:
        return parse(settings().fake_devices)


def parse(text: str) -> list[Device]:
    """Devices of `4x80GiB`, of `cuda:0=80GiB,cuda:1=24GiB`, or of both kinds in a row. Raises `ConfigError`, naming the variable."""
    found: list[Device] = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        if counted := _COUNTED.fullmatch(part):
            if not 1 <= int(counted[1]) <= MOST:
                raise ConfigError(f"{VARIABLE}: '{part}' means {counted[1]} devices; 1 to {MOST} can be made up", param=VARIABLE)
            found += [_device(f"{FAKE}:{len(found) + at}", parse_bytes(counted[2], VARIABLE)) for at in range(int(counted[1]))]
        elif named := _NAMED.fullmatch(part):
            kind = named[1] if named[1] == FAKE else f"{FAKE}-{named[1]}"
            found.append(_device(f"{kind}:{int(named[2])}", parse_bytes(named[3], VARIABLE)))
        else:
            raise ConfigError(f"{VARIABLE}: '{part}' is neither like 4x80GiB nor like cuda:0=80GiB", param=VARIABLE)
    names = [device.id for device in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{VARIABLE}: the device {twice} is described twice", param=VARIABLE)
    return found


def _device(name: str, memory: int) -> Device:
    return Device(id=name, kind=FAKE, name="made up", memory=memory, memory_free=memory)
