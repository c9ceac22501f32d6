"""Waiting in tests for something to come true, with a deadline instead of a sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from xi_core.errors import DeadlineExceeded

T = TypeVar("T")


def wait_until(check: Callable[[], T], timeout: float = 30.0, what: str = "it") -> T:
    """Call `check` until it answers something true. Raises `DeadlineExceeded`."""
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"after {timeout:g} s still waiting for {what}")
        time.sleep(0.02)
    return found


async def until(check: Callable[[], T], timeout: float = 10.0, what: str = "it") -> T:
    """The same while the event loop runs on."""
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"after {timeout:g} s still waiting for {what}")
        await asyncio.sleep(0.002)
    return found
