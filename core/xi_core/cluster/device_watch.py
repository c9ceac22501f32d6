"""Looks at a worker's devices again and again, and tells the supervisor when they have changed noticeably. Run by the worker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from xi_core.cluster.devices import Device
from xi_core.cluster.threads import in_thread

log = logging.getLogger(__name__)

INTERVAL = 3.0
"""Seconds between looks."""
MOST_BUSY = 0.02
"""Part of the time that looking may take: `nvidia-smi` takes a second on a large machine, so that the pause grows."""
MEMORY_STEP = 64 * 2**20
UTILISATION_STEP = 0.1


class DeviceWatch:
    """What the devices were when they were told last. A machine without any is not looked at again."""

    def __init__(
        self,
        devices: list[Device],
        probe: Callable[[], list[Device]],
        tell: Callable[[list[Device]], bool],
        interval: float = INTERVAL,
    ) -> None:
        """`tell` says whether the supervisor was there to hear it; it is told again at the next look where it wasn't."""
        self._told, self._probe, self._tell, self._interval = devices, probe, tell, interval

    async def run(self) -> None:
        """Until cancelled; at once over where there is no device."""
        pause = self._interval
        while self._told:
            await asyncio.sleep(pause)
            began = time.monotonic()
            try:
                found = await in_thread(self._probe)
            except Exception:
                log.exception("the devices could not be looked at")
                found = []
            pause = max(self._interval, (time.monotonic() - began) / MOST_BUSY)
            # A look that finds nothing at all where there were devices is taken for one that failed.
            if found and noticeable(self._told, found) and self._tell(found):
                self._told = found


def noticeable(before: list[Device], now: list[Device]) -> bool:
    """Whether devices came or went, or one's free memory or use changed by more than a little."""
    if [device.id for device in before] != [device.id for device in now]:
        return True
    return any(
        one.memory != other.memory
        or abs(one.memory_free - other.memory_free) > MEMORY_STEP
        or abs(one.utilisation - other.utilisation) > UTILISATION_STEP
        for one, other in zip(before, now, strict=True)
    )
