"""`Orders`: what the worker tells a replica that serves, carried out one after the other. They come by the life line's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from xi_core.errors import EngineError, XiError
from xi_core.serving.service import Service
from xi_core.wire.order import Order, OrderReader
from xi_core.wire.report import Obeyed, Report

log = logging.getLogger(__name__)


class Orders:
    """Reads orders, and reports what came of each. Made on the loop."""

    def __init__(self, report: Callable[[Report], None]) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._reader = OrderReader()
        self._waiting: asyncio.Queue[Order] = asyncio.Queue()
        self._deaf = False
        """Whether something came that can't be read, so that what follows can't be either."""

    def take(self, data: bytes) -> None:
        """A piece of the pipe, on the thread that reads it. One that can't be read ends this replica's obedience, not its life."""
        if self._deaf:
            return
        try:
            orders = self._reader.feed(data)
        except (ValueError, msgspec.DecodeError) as error:
            log.error("an order of the worker can't be read, and so none from now on: %s", error)
            self._deaf = True
            return
        for order in orders:
            self._loop.call_soon_threadsafe(self._waiting.put_nowait, order)

    async def obey(self, service: Service) -> None:
        """Carry them out until cancelled."""
        while True:
            order = await self._waiting.get()
            error: XiError | None = None
            try:
                if order.level:
                    await service.sleep(order.level)
                else:
                    await service.wake()
            except XiError as failure:
                error = failure
            except Exception as failure:  # an engine is a plugin: whoever asked gets to see it
                log.exception("an order could not be carried out")
                error = EngineError(f"{type(failure).__name__}: {failure}")
            self._report(Obeyed(number=order.number, level=service.asleep, error=error.body() if error is not None else None))
