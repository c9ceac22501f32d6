"""Looks at a worker's devices again and again, and tells the supervisor when they have changed noticeably. Run by the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from xi_core.cluster.devices import Device
from xi_core.cluster.threads import in_thread

log = logging.getLogger(__name__)

INTERVAL = 3.0
"""Seconds between looks."""
MOST_BUSY = 0.02
"""Part of the time that looking may take: `nvidia-smi` takes a second on a large machine, so that the pause grows. Not where something was
freed."""
LOOK = 2.0
"""Seconds that the word of a replica's end waits for a look at what it has freed."""
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
        self._asked: list[asyncio.Future[None]] = []
        self._soon = asyncio.Event()
        self._closed = False

    def look(self) -> asyncio.Future[None]:
        """Look without a pause: something was freed. Done once what is seen from now on is told, or where nothing is looked at any more."""
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._soon.set()
        if self._closed or not self._told:
            self._answer(1)
        return asked

    def close(self) -> None:
        """Nobody is to wait for a look any more."""
        self._closed = True
        self._answer(len(self._asked))

    def _answer(self, count: int) -> None:
        """To the first of those who asked: it was looked."""
        for asked in self._asked[:count]:
            if not asked.done():
                asked.set_result(None)
        del self._asked[:count]

    async def run(self) -> None:
        """Until cancelled; at once over where there is no device."""
        pause = self._interval
        while self._told:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), pause)
            self._soon.clear()
            asked, began = len(self._asked), time.monotonic()
            try:
                found = await in_thread(self._probe)
            except Exception:
                log.exception("the devices could not be looked at")
                found = []
            # Where something was freed, a driver may take a moment for it.
            pause = self._interval if asked else max(self._interval, (time.monotonic() - began) / MOST_BUSY)
            # A look that finds nothing at all where there were devices is taken for one that failed.
            if found and noticeable(self._told, found) and self._tell(found):
                self._told = found
            self._answer(asked)


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
