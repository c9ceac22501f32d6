"""The life of a rank above 0, once it has loaded its part: it listens to nobody, does what rank 0 does, and tells that it lives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from xi_core.engine.base import Engine, LoadedModel, TokenEngine
from xi_core.engine.rank_link import RankLink, follow
from xi_core.errors import EngineError
from xi_core.wire.report import Health, Ready, Report

INTERVAL = 0.5
"""Seconds between life signs."""
CLOSE_SECONDS = 5.0
LAST_WORD = 10.0
"""Seconds that this rank waits to be stopped after rank 0 has ended."""


async def serve_rank(engine: Engine, model: LoadedModel, report: Callable[[Report], None], stop: asyncio.Event) -> None:
    """Until stopped. Raises `EngineError` when the engine fails, rank 0 is lost, or this rank no longer computes the same."""
    following = Following(engine, engine.rank_link) if isinstance(engine, TokenEngine) and engine.rank_link is not None else None
    report(Ready(endpoint="", context_length=model.context_length, slots=model.slots, manifest=model.manifest))
    ended = 0.0
    try:
        while not stop.is_set():
            engine.check()
            if following is not None and following.ended.is_set():
                following.raise_failure()
                ended += INTERVAL
                if ended > LAST_WORD:
                    raise EngineError("rank 0 has ended, and this rank was not told to")
            report(Health(healthy=True, steps=engine.stats().steps, running=0, waiting=0))
            try:
                await asyncio.wait_for(stop.wait(), INTERVAL)
            except TimeoutError:
                continue
    finally:
        engine.close(CLOSE_SECONDS)


class Following:
    """The thread that follows rank 0."""

    def __init__(self, engine: TokenEngine, link: RankLink) -> None:
        self.ended = threading.Event()
        self._failure: Exception | None = None
        threading.Thread(target=self._run, args=(engine, link), name="follower", daemon=True).start()

    def raise_failure(self) -> None:
        """Raise why it has ended, where that is no good reason."""
        if self._failure is not None:
            raise EngineError(f"this rank lost rank 0: {self._failure}") from self._failure

    def _run(self, engine: TokenEngine, link: RankLink) -> None:
        try:
            follow(engine, link)
        except Exception as error:  # of any library that links ranks
            self._failure = error
        finally:
            self.ended.set()
