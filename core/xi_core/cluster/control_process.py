"""What the control processes have in common: logging, limits, the line that says "ready", and how they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from xi_core import log_level
from xi_core.cluster.sibling import CONFIG_STATUS
from xi_core.errors import ConfigError, PluginError, XiError
from xi_core.replica.lifeline import die_with_parent, watch_stdin

T = TypeVar("T")

MANY_FILES = (65536, 10240)
"""Open files that a process with many connections wants; the second is what macOS allows where it allows no more."""


def set_up_logging(role: str, level: str) -> None:
    """Log to stderr, each line with the role. Raises `ConfigError` for a level that is none."""
    logging.basicConfig(
        level=log_level.checked(level).upper(), format=f"%(asctime)s {role:<10} %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )


def allow_many_files() -> None:
    """Raise the limit of open files as far as this process may: each worker and each client takes one, and shells give 1,024 or 256."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for files in MANY_FILES:
        wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def announce(role: str, detail: str = "", **more: str) -> None:
    """Tell the launcher, on stdout, that this process is ready, and `more` that its user should know."""
    sys.stdout.write(json.dumps({"role": role, "pid": os.getpid(), "detail": detail, **more}) + "\n")
    sys.stdout.flush()


def announce_stop(role: str) -> None:
    """Tell the launcher, on stdout, that this process was asked to stop, and that the others are to stop too."""
    sys.stdout.write(json.dumps({"role": role, "pid": os.getpid(), "stop": True}) + "\n")
    sys.stdout.flush()


async def first_of(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when `stop` was set first."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, stopped):
            one.cancel()


def exit_status(life: Coroutine[Any, Any, None]) -> int:
    """Run a process's life; an error of xi's own is logged in words. 78: starting it again as it is set up is of no use."""
    try:
        asyncio.run(life)
    except (ConfigError, PluginError) as error:
        logging.getLogger(__name__).error("%s", error.message)
        return CONFIG_STATUS
    except XiError as error:
        logging.getLogger(__name__).error("%s", error.message)
        return 1
    return 0


def stop_event(follow_stdin: bool) -> asyncio.Event:
    """An event that is set by SIGTERM or SIGINT, and with `follow_stdin` by the launcher's death. Call on the loop."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if follow_stdin:
        die_with_parent()

        def launcher_is_gone() -> None:  # called in the watching thread
            loop.call_soon_threadsafe(stop.set)

        watch_stdin(launcher_is_gone)
    return stop
