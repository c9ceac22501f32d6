"""`LoopQueue`: how an engine's threads hand their output to the replica's loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class LoopQueue(Generic[T]):
    """Items from any thread, taken on the loop in batches: one wake-up however many have come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[T], None]) -> None:
        self._loop = loop
        self._take = take
        self._items: deque[T] = deque()
        self._scheduled = False

    def put(self, item: T) -> None:
        """Add an item. Any thread."""
        self._items.append(item)
        if not self._scheduled:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed: the replica is ending and nobody listens
                log.debug("an engine's output came after the loop had closed")

    def _drain(self) -> None:
        self._scheduled = False  # before taking: an item put from here on schedules anew
        try:
            for _ in range(len(self._items)):  # no more than have come: a quick engine must not keep the loop for itself
                self._take(self._items.popleft())
        finally:
            if self._items and not self._scheduled:  # taking one has raised: the others must not wait for the next
                self._scheduled = True
                self._loop.call_soon(self._drain)
