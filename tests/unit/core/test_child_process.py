"""`Child` and the process that starts it: nothing that a server has started outlives it or the replica, however it hides and they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from xi_core.cluster import keeper
from xi_core.engine import child_start
from xi_core.engine.child_process import Child
from xi_core.testing.waiting import until, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")

SERVER = """
import os, signal, subprocess, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "polite" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
HIDER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]], env={}, start_new_session=True); time.sleep(60)"
for program in (SLEEPER, HIDER):  # both have no environment and are in a session of their own, one below the other's like
    subprocess.Popen([sys.executable, "-c", program, SLEEPER], env={}, start_new_session=True)
if "daemon" in sys.argv and os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", SLEEPER], {})
    os._exit(0)
time.sleep(60)
"""
REPLICA = """
import asyncio, os, sys
from xi_core.engine.child_process import Child
async def main():
    child = Child([sys.executable, "-c", sys.argv[1]], os.environ, "secret", lambda line: print(line, flush=True))
    await child.exited.wait()
asyncio.run(main())
"""


def started(*options: str, tag: str = "") -> Child:
    return Child([sys.executable, "-c", SERVER, *options], {**os.environ, child_start.TAG: tag}, "secret", lambda line: None)


async def hidden(child: Child, count: int = 2) -> list[psutil.Process]:
    """What the server has started, once it tells of it."""
    await until(lambda: len(child.lines) >= count)
    return [psutil.Process(int(line)) for line in child.lines]


def gone(processes: list[psutil.Process]) -> bool:
    def is_gone(one: psutil.Process) -> bool:
        try:
            return not one.is_running() or one.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return all(is_gone(one) for one in processes)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """The starter itself ends, too, and is reaped. Servers of other files' tests may run beside."""
    before = psutil.Process().children(recursive=True)
    yield
    assert not set(psutil.Process().children(recursive=True)) - set(before)


async def test_what_hides_dies_with_a_killed_server() -> None:
    child = started()
    left = await hidden(child)
    os.kill(child.pid, signal.SIGKILL)
    await child.exited.wait()
    await child.sweep()
    assert gone(left)
    assert child.how().startswith("was killed by SIGKILL")


async def test_what_hides_dies_after_a_server_that_ends_by_itself() -> None:
    child = started("polite")
    left = await hidden(child)
    os.kill(child.pid, signal.SIGTERM)
    await child.exited.wait()
    await child.sweep()
    assert gone(left)
    assert child.how() == "ended with status 9"


async def test_a_daemon_may_live_as_long_as_the_server() -> None:
    child = started("daemon")
    left = await hidden(child, 3)
    await asyncio.sleep(0.3)
    assert all(one.is_running() for one in left)
    await child.stop(5.0)
    assert gone(left)
    assert child.how() == "was killed by SIGTERM"


async def test_stop_kills_a_deaf_server_after_its_grace() -> None:
    child = started("deaf")
    left = await hidden(child)
    began = time.monotonic()
    await child.stop(0.3)
    assert 0.3 <= time.monotonic() - began < 5.0
    assert gone(left)
    assert child.how().startswith("was killed by SIGKILL")


async def test_stop_of_what_was_stopped_by_a_signal() -> None:
    child = started()
    left = await hidden(child)
    server = psutil.Process(child.pid)
    for one in (server.parent(), server, *left):
        one.suspend()
    await asyncio.wait_for(child.stop(0.1), 10.0)
    assert gone([server, *left])
    assert child.how().startswith("was killed by SIGKILL")


async def test_stop_at_once() -> None:
    child = started()
    await child.stop(0.0)
    assert not psutil.pid_exists(child.pid)


async def test_a_killed_starter_takes_the_server_along() -> None:
    child = started()
    await hidden(child)
    server = psutil.Process(child.pid)
    hiding = server.children(recursive=True)
    try:
        server.parent().kill()
        await child.exited.wait()
        await child.sweep()
        wait_until(lambda: gone([server]), 5.0)
        assert child.how().startswith("was killed by SIGKILL")
    finally:
        for one in hiding:
            one.kill()


async def test_the_starter_heeds_no_signal_of_an_orphan() -> None:
    child = started()
    await hidden(child)
    server = psutil.Process(child.pid)
    for number in (signal.SIGQUIT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        server.parent().send_signal(number)
    await asyncio.sleep(0.1)
    assert server.is_running()
    assert not child.exited.is_set()
    await child.stop(5.0)


async def test_the_server_has_the_tag_and_the_group_and_the_starter_neither() -> None:
    child = started(tag="m-0@e-1")
    await hidden(child)
    server = psutil.Process(child.pid)
    starter = server.parent()
    assert (server.environ()[keeper.TAG], os.getpgid(server.pid)) == ("m-0@e-1", os.getpgrp())
    assert keeper.TAG not in starter.environ()
    assert os.getpgid(starter.pid) == starter.pid
    assert "time.sleep" not in " ".join(starter.cmdline())  # who looks for a server by its command line must not find two
    await child.stop(5.0)


async def test_signals_that_python_ignores_are_not_ignored_in_the_server() -> None:
    child = Child(["/bin/cat", "/proc/self/status"], os.environ, "secret", lambda line: None)
    await child.exited.wait()
    await child.sweep()
    ignored = next(int(line.split()[1], 16) for line in child.lines if line.startswith("SigIgn"))
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 | 1 << signal.SIGTERM - 1)


async def test_a_command_that_is_not_there_and_one_with_empty_words() -> None:
    missing = Child(["/no/such/program"], os.environ, "secret", lambda line: None)
    empty = Child([sys.executable, "-c", "import sys; print(sys.argv[1:])", "", "ü", ""], os.environ, "secret", lambda line: None)
    for child in (missing, empty):
        await child.exited.wait()
        await child.sweep()
    assert (missing.lines, missing.how()) == (["/no/such/program can't be run: No such file or directory"], "ended with status 1")
    assert (empty.lines, empty.how()) == (["['', 'ü', '']"], "ended with status 0")


async def test_a_starter_that_can_not_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FileNotFoundError):
        started()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter as it is on a system that isn't Linux."""
    copy, text = tmp_path / "child_start.py", Path(child_start.__file__).read_text(encoding="utf-8")
    assert 'sys.platform == "linux"' in text
    copy.write_text(text.replace('sys.platform == "linux"', "False"), encoding="utf-8")
    monkeypatch.setattr(child_start, "__file__", str(copy))


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("action", "end"), [("SIG_DFL", "was killed by SIGTERM"), ("SIG_IGN", "was killed by SIGKILL")])
async def test_the_server_of_a_system_that_has_no_subreapers(action: str, end: str) -> None:
    code = f"import signal, time; signal.signal(signal.SIGTERM, signal.{action}); print('x', flush=True); time.sleep(60)"
    child = Child([sys.executable, "-c", code], os.environ, "secret", lambda line: None)
    await until(lambda: child.lines)
    assert os.getpgid(child.pid) == os.getpgrp()
    await child.stop(0.5)
    assert child.how().startswith(end)


@pytest.mark.parametrize("how", ["alone", "by its worker", "while all is stopped"])
def test_nothing_outlives_a_killed_replica(how: str) -> None:
    tag = f"test-{os.getpid()}@{time.monotonic_ns()}"
    replica = subprocess.Popen(
        [sys.executable, "-c", REPLICA, SERVER], stdout=subprocess.PIPE, start_new_session=True, env={**os.environ, keeper.TAG: tag}
    )
    assert replica.stdout is not None
    family: list[psutil.Process] = []
    try:
        for _ in range(2):
            replica.stdout.readline()
        family = psutil.Process(replica.pid).children(recursive=True)
        if how == "while all is stopped":
            for one in family:
                one.suspend()
        if how == "alone":
            replica.kill()
        else:
            keeper.kill_group(replica.pid)
            keeper.kill_tagged({tag})
        replica.wait()
        assert len(family) == 5  # the starter, the server, and what hides: two, one of which has a child
        wait_until(lambda: gone(family), 5.0, f"the end of {family}")
    finally:
        replica.kill()
        replica.wait()
        replica.stdout.close()
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def test_a_replica_that_dies_before_it_has_told_what_to_run() -> None:
    for said in (b"", child_start.packed("", ["/bin/sleep", "60"])[:-3]):
        done = subprocess.run([sys.executable, "-I", "-S", str(Path(child_start.__file__))], input=said, check=False, timeout=10)
        assert done.returncode == 3
