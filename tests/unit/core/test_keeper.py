"""The keeper kills what its worker ran, whatever that does to stay alive."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.cluster.guard import Guard
from xi_core.cluster.keeper import TAG
from xi_core.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[1:]:
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    for session in (False, True):
        subprocess.Popen([sys.executable, "-c", child], start_new_session=session, stdout=subprocess.PIPE).stdout.readline()
print(os.getpid(), flush=True)
time.sleep(60)
"""


def tagged(tag: str) -> list[int]:
    """Processes that carry this tag and are no zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{TAG}={tag}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def stubborn(tag: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN, "family"], start_new_session=True, stdout=subprocess.PIPE, env={**os.environ, TAG: tag}
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    tag = f"test-{os.getpid()}@{time.monotonic_ns()}"
    process = stubborn(tag)
    try:
        yield process, tag
    finally:
        for pid in tagged(tag):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_end_of_the_worker_kills_the_group_and_strays(family: tuple[subprocess.Popen[bytes], str]) -> None:
    process, tag = family
    assert len(tagged(tag)) == 3
    guard = Guard()
    guard.add(process.pid, tag)
    guard.close()
    wait_until(lambda: process.poll() is not None and not tagged(tag), 5.0)
    assert process.returncode == -signal.SIGKILL


def test_a_group_that_was_dropped_is_left_alone(family: tuple[subprocess.Popen[bytes], str]) -> None:
    process, tag = family
    guard = Guard()
    guard.add(process.pid, tag)
    guard.drop(process.pid)
    guard.close()
    assert process.poll() is None
    assert len(tagged(tag)) == 3


def test_a_killed_keeper_is_replaced_and_told_the_list(family: tuple[subprocess.Popen[bytes], str]) -> None:
    process, tag = family
    guard = Guard()
    guard.add(process.pid, tag)
    assert guard.restart_if_dead() is False
    first = guard.pid
    os.kill(first, signal.SIGKILL)
    wait_until(guard.restart_if_dead, 5.0)
    assert guard.pid != first
    assert process.poll() is None
    guard.close()
    wait_until(lambda: process.poll() is not None and not tagged(tag), 5.0)


def test_a_keeper_that_can_not_be_replaced_now_is_replaced_later(
    family: tuple[subprocess.Popen[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is out of process numbers for a moment must not leave the worker without one for ever."""
    process, tag = family
    guard = Guard()
    guard.add(process.pid, tag)
    os.kill(guard.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{guard.pid}").exists() or "Z" in Path(f"/proc/{guard.pid}/stat").read_text().split(")")[1])
    with monkeypatch.context() as broken:
        broken.setattr(guard, "_spawn", _no_process)
        assert not guard.restart_if_dead()
    assert guard.restart_if_dead()
    guard.close()
    wait_until(lambda: not [pid for pid in tagged(tag) if pid != process.pid] and process.poll() is not None)


def _no_process() -> subprocess.Popen[bytes]:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def test_the_keeper_ignores_the_signals_of_a_terminal() -> None:
    guard = Guard()
    try:
        wait_until(lambda: b"SigIgn" in Path(f"/proc/{guard.pid}/status").read_bytes() and _ignored(guard.pid) & 0x4003 == 0x4003, 5.0)
    finally:
        guard.close()


def _ignored(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return int(line.split()[1], 16)


def test_a_line_that_is_none_does_not_keep_the_keeper_from_its_task(family: tuple[subprocess.Popen[bytes], str]) -> None:
    process, tag = family
    guard = Guard()
    guard.add(process.pid, tag)
    for line in ("+\n", "-0@e-1\n", "+x y\n", "\n"):
        guard._say(line)
    guard.close()
    wait_until(lambda: process.poll() is not None and not tagged(tag), 5.0)


def test_a_closed_guard_takes_the_last_words_of_its_worker(family: tuple[subprocess.Popen[bytes], str]) -> None:
    process, tag = family
    guard = Guard()
    guard.add(process.pid, tag)
    guard.close()
    guard.drop(process.pid)
