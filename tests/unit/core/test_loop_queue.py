"""The queue from an engine's thread to the event loop."""

import asyncio
from typing import Any

from xi_core.serving.loop_queue import LoopQueue


async def test_an_item_that_raises_does_not_hold_back_those_behind_it() -> None:
    taken: list[int] = []

    def take(item: int) -> None:
        if item == 1:
            raise ValueError(item)
        taken.append(item)

    loop = asyncio.get_running_loop()
    raised: list[Any] = []
    loop.set_exception_handler(lambda loop, context: raised.append(context["exception"]))
    queue: LoopQueue[int] = LoopQueue(loop, take)
    for item in range(4):
        queue.put(item)
    async with asyncio.timeout(5):
        while len(taken) < 3:
            await asyncio.sleep(0)
    assert taken == [0, 2, 3]
    assert [type(error) for error in raised] == [ValueError]
