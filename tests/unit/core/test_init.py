"""The first process of a container: orphans are reaped, signals passed on, and the command's end is its own.

A subreaper stands in for process 1: it, too, becomes the parent of what has lost its own.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xi_core.cluster import init
from xi_core.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")

SUBREAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.execv(sys.executable, sys.argv[1:])
"""
ORPHANS = """
import os, sys
for n in range(3):
    if os.fork() == 0:
        os.fork()  # which loses its parent at once, and ends
        os._exit(n)
for n in range(3):
    assert os.waitstatus_to_exitcode(os.wait()[1]) in range(3), "it gets the statuses of its own children"
print("started", flush=True)
sys.stdin.read()
sys.exit(7)
"""
SIGNALS = """
import signal, sys
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda number, _: print(number, flush=True))
assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "none is left blocked"
print("started", flush=True)
sys.stdin.read()
"""


def start(code: str) -> subprocess.Popen[str]:
    """An init that runs this, ready."""
    command = [sys.executable, "-I", "-S", init.__file__, sys.executable, "-c", code]
    process = subprocess.Popen([sys.executable, "-c", SUBREAPER, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def children(pid: int) -> list[str]:
    """The states of its children."""
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in words]


def test_orphans_are_reaped_and_the_commands_status_is_passed_on() -> None:
    process = start(ORPHANS)
    wait_until(lambda: len(children(process.pid)) == 1, 10.0, "the orphans to be reaped")
    process.communicate("")
    assert process.returncode == 7


def test_a_process_that_waits_for_its_own_only_leaves_them() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SUBREAPER, sys.executable, "-c", ORPHANS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    wait_until(lambda: children(process.pid) == ["Z"] * 3, 10.0, "the orphans to end")
    process.communicate("")


def test_signals_are_passed_on() -> None:
    process = start(SIGNALS)
    assert process.stdout is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(number)
        assert process.stdout.readline() == f"{number:d}\n"
    process.communicate("")
    assert process.returncode == 0


def test_a_command_that_is_killed_and_one_that_can_not_be_run() -> None:
    process = start("import sys; print('started', flush=True); sys.stdin.read()")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    process.communicate()
    done = subprocess.run([sys.executable, "-I", "-S", init.__file__, "/nowhere/xi"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (127, "/nowhere/xi can't be run: No such file or directory\n")


def test_ctrl_c_of_a_terminal_comes_once() -> None:
    """The terminal sends it to the command itself; a second one would mean: stop at once."""
    ours, theirs = pty.openpty()
    opening = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-I", "-S", init.__file__, sys.executable, "-c", SIGNALS]
    process = subprocess.Popen(
        [sys.executable, "-c", opening, *command], stdin=theirs, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    os.close(theirs)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.write(ours, b"\x03")
    assert process.stdout.readline() == f"{signal.SIGINT:d}\n"
    process.send_signal(signal.SIGUSR1)  # whatever the terminal's signal did in between has been done before this
    assert process.stdout.readline() == f"{signal.SIGUSR1:d}\n"
    os.write(ours, b"\x04")
    process.communicate()
    os.close(ours)
