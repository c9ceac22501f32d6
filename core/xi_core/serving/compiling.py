"""`Compilations`: grammars of requests are compiled on threads of their own, within a time, before their sequences join the batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from xi_core.engine.grammar import Grammar
from xi_core.errors import EngineError, InvalidRequest, XiError

log = logging.getLogger(__name__)

LONGEST = 10.0
"""Seconds that a grammar may take, waiting for a thread included. The library bounds the work as well, so that no thread is lost."""
_THREADS = 2


class Compilations:
    """Used by `TokenService`, on the loop."""

    def __init__(self, prepare: Callable[[Grammar], None], longest: float = LONGEST) -> None:
        self._prepare = prepare
        self._longest = longest
        self._threads = ThreadPoolExecutor(_THREADS, "xi-grammars")
        self._running: set[asyncio.Task[None]] = set()

    def start(self, grammar: Grammar, then: Callable[[XiError | None], None]) -> None:
        """Compile; `then` is called on the loop with what went wrong, or None."""
        task = asyncio.get_running_loop().create_task(self._compile(grammar, then))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def close(self) -> None:
        """Start nothing more; what runs ends by itself."""
        for task in self._running:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _compile(self, grammar: Grammar, then: Callable[[XiError | None], None]) -> None:
        then(await self._problem(grammar))

    async def _problem(self, grammar: Grammar) -> XiError | None:
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._prepare, grammar)
        try:
            await asyncio.wait_for(work, self._longest)
        except TimeoutError:
            return InvalidRequest(f"{grammar.param}: took more than {self._longest:g} s to compile; make it simpler", param=grammar.param)
        except XiError as error:
            return error
        except Exception:
            log.exception("a grammar could not be compiled")
            return EngineError("the replica failed to compile the grammar; its log has the details")
        return None
