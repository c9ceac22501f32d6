"""The life of a rank above 0, once it has loaded its part: it listens to nobody, does what rank 0 does, and tells that it lives."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from xi_core.engine.base import ApiEngine, Engine, LoadedModel, TokenEngine
from xi_core.engine.rank_link import RankLink, follow
from xi_core.errors import EngineError
from xi_core.wire.report import Health, Ready, Report

INTERVAL = 0.5
"""Seconds between life signs."""
CLOSE_SECONDS = 5.0
LAST_WORD = 10.0
"""Seconds that this rank waits to be stopped after rank 0 has ended."""


async def serve_rank(engine: Engine, model: LoadedModel, report: Callable[[Report], None], stop: asyncio.Event, grace: float) -> None:
    """Until stopped. Asked to stop it goes on for `grace` seconds at most: rank 0 finishes what it runs, and can't without this rank.

    Raises `EngineError` when the engine fails, rank 0 is lost, or this rank no longer computes the same.
    """
    following = Following(engine, engine.rank_link) if isinstance(engine, TokenEngine) and engine.rank_link is not None else None
    report(Ready(endpoint="", context_length=model.context_length, slots=model.slots, manifest=model.manifest))
    try:
        await _stay(engine, following, report, stop)
        if following is not None:
            await following.wait(grace)
        elif isinstance(engine, ApiEngine):
            await _stay_behind(engine, grace)
    finally:
        engine.close(CLOSE_SECONDS)


async def _stay(engine: Engine, following: Following | None, report: Callable[[Report], None], stop: asyncio.Event) -> None:
    """Tell that this rank lives, until it is told to stop."""
    ended_at = 0.0
    while not stop.is_set():
        engine.check()
        if following is not None and following.ended:
            following.raise_failure()
            ended_at = ended_at or time.monotonic()
            if time.monotonic() - ended_at > LAST_WORD:
                raise EngineError("rank 0 has ended, and this rank was not told to")
        report(Health(healthy=True, steps=engine.stats().steps, running=0, waiting=0))
        waiting: set[asyncio.Future[Any]] = {asyncio.ensure_future(stop.wait())}
        if following is not None and not following.ended:
            waiting.add(asyncio.ensure_future(following.wait(INTERVAL)))
        _, rest = await asyncio.wait(waiting, timeout=INTERVAL, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()


async def _stay_behind(engine: Engine, grace: float) -> None:
    """Of an engine whose ranks talk among themselves: nothing here tells when rank 0 is done, but the supervisor ends this rank then."""
    with contextlib.suppress(EngineError, TimeoutError):
        async with asyncio.timeout(grace):
            while True:
                engine.check()
                await asyncio.sleep(INTERVAL)


class Following:
    """The thread that follows rank 0. Made on the loop."""

    def __init__(self, engine: TokenEngine, link: RankLink) -> None:
        self._failure: Exception | None = None
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(engine, link), name="follower", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether rank 0 has ended, or this rank has lost it."""
        return self._ended.is_set()

    async def wait(self, seconds: float) -> None:
        """Wait for the end, for so long at most."""
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return

    def raise_failure(self) -> None:
        """Raise why it has ended, where that is no good reason."""
        if isinstance(self._failure, EngineError):
            raise self._failure
        if self._failure is not None:
            raise EngineError(f"this rank lost rank 0: {self._failure}") from self._failure

    def _run(self, engine: TokenEngine, link: RankLink) -> None:
        try:
            follow(engine, link)
        except Exception as error:  # of any library that links ranks
            self._failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._ended.set)
