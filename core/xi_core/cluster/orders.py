"""Orders to a replica's process that are not yet obeyed. Each `RunningReplica` has one `Orders`."""

from __future__ import annotations

import asyncio
import itertools

from xi_core.cluster.process import ReplicaProcess
from xi_core.errors import ReplicaLost, XiError
from xi_core.wire.order import Order
from xi_core.wire.report import Obeyed


class Orders:
    """By number, who waits for what. On the worker's loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._ended = ""
        """Why no order is obeyed any more."""

    async def give(self, process: ReplicaProcess, level: int) -> None:
        """Have a process sleep at this level, 0: wake. Raises what it answers, and `ReplicaLost` where it ends instead."""
        if self._ended:
            raise ReplicaLost(self._ended)
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            process.order(Order(number, level))
            await answer
        finally:
            del self._waiting[number]

    def obeyed(self, report: Obeyed) -> None:
        """The process has answered. Nobody may wait for it any more."""
        answer = self._waiting.get(report.number)
        if answer is None or answer.done():
            return
        if report.error is None:
            answer.set_result(None)
        else:
            answer.set_exception(XiError.from_body(report.error))

    def end(self, why: str) -> None:
        """No answer will come, to these and to later ones."""
        self._ended = why
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ReplicaLost(why))
