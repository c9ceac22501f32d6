"""`Sleeping`: how a service sleeps and wakes. New requests are refused from the first moment on; those that run may end first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from xi_core.engine.base import Engine
from xi_core.errors import Conflict, EngineError, ModelAsleep, Unavailable, XiError
from xi_core.wire.sleep import asleep

log = logging.getLogger(__name__)

LEAVING = 5.0
"""Seconds in which requests that were ended must have left the engine."""


class Sleeping:
    """Whether one engine sleeps. `quieten` ends what runs; `broken` takes the reason why the engine can't go on."""

    def __init__(self, uid: str, engine: Engine, quieten: Callable[[], Awaitable[None]], broken: Callable[[XiError], None]) -> None:
        self._uid, self._engine = uid, engine
        self._quieten, self._broken = quieten, broken
        self.level = 0
        """At which it sleeps, or is about to; 0: awake."""

    def refusal(self) -> ModelAsleep | None:
        """What a request gets now; None where it is served."""
        return asleep(self._uid) if self.level else None

    async def sleep(self, level: int) -> None:
        """Fall asleep. At the level at which it sleeps there is nothing to do. Raises `Conflict` at another, and what the engine raises."""
        if self.level == level:
            return
        if self.level:
            raise Conflict(f"model '{self._uid}' sleeps at level {self.level} already; wake it first: xi wake {self._uid}", param="level")
        self.level = level
        try:
            await self._quieten()
            await self._until_empty()
            await self._do(partial(self._engine.sleep, level))
        except BaseException:
            self.level = 0
            raise
        log.info("asleep at level %d", level)

    async def wake(self) -> None:
        """Serve again. Raises what the engine raises."""
        if self.level:
            await self._do(self._engine.wake)
            self.level = 0
            log.info("awake")

    async def _until_empty(self) -> None:
        until = time.monotonic() + LEAVING
        while self._engine.stats().running:
            if time.monotonic() > until:
                raise Unavailable(f"model '{self._uid}' still runs requests that were ended; try again in a moment", retry_after=1.0)
            await asyncio.sleep(0.01)

    async def _do(self, work: Callable[[], None]) -> None:
        """On a thread of its own. An `EngineError` means that nobody knows how the engine is now: it is broken, and another begins."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, work)
        except XiError as error:
            if isinstance(error, EngineError):
                self._broken(error)
            raise
        except Exception as error:  # of a library
            failure = EngineError(f"{type(error).__name__}: {error}")
            self._broken(failure)
            raise failure from error


def ended() -> Unavailable:
    """What a request gets that ran too long for its model to wait for it."""
    return Unavailable("the model was put to sleep before this request was done")
