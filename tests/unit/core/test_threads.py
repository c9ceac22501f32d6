"""Work beside the event loop: whatever ends it, who waits is told."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from xi_core.cluster.threads import in_thread


async def test_the_result_comes_back() -> None:
    assert await in_thread(threading.current_thread) is not threading.main_thread()


async def test_a_failure_is_the_callers() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await in_thread(fail)


async def test_a_plugin_that_wants_to_end_the_process_fails_only() -> None:
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        await asyncio.wait_for(in_thread(lambda: sys.exit(3)), 5.0)
