"""Work that may block, done beside the event loop: what waits for a disk or reads much must not hold up the links' beats."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """The result of `work`, done in a thread that doesn't keep the process from ending.

    The result is a `BlockingIOError` where the system allows no more threads now.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value, failure = None, None
        try:
            value = work()
        except BaseException as error:  # whatever it is, even a plugin's SystemExit: who waits gets to see it
            failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, value, failure)

    try:
        threading.Thread(target=run, name="beside-the-loop", daemon=True).start()
    except RuntimeError as error:
        result.set_exception(BlockingIOError(errno.EAGAIN, str(error)))
    return result


async def surely(work: Callable[[], None]) -> None:
    """Do `work` beside the loop, or on it where there can be no more threads: what must be done, such as to end processes."""
    try:
        await in_thread(work)
    except BlockingIOError:
        work()
