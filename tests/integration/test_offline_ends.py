"""Ends of a program that holds an `LLM`: nothing of it is left, however it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from xi_core.testing.waiting import wait_until


def processes(home: Path) -> list[psutil.Process]:
    """Whatever runs with this home, but not this process."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("XI_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


BEGIN = """
import sys, threading
from xi_core import LLM, SamplingParams
llm = LLM("xi-tiny", engine="llama.cpp")
print("ready", flush=True)
sys.stdin.readline()  # until the test has seen what runs
"""
BUSY = BEGIN + (
    "threading.Timer(0.3, print, ('busy',), {'flush': True}).start()\n"
    "while True: llm.generate(['Hello'] * 64, SamplingParams(max_tokens=500, ignore_eos=True))\n"
)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "XI_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(processes(tmp_path)) >= 3
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_program_that_just_ends(program: Any, tmp_path: Path) -> None:
    process = program(BEGIN)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert not processes(tmp_path)
    assert not list(tmp_path.glob("xi-*")), "its folder of sockets is gone"


@pytest.mark.parametrize("end", ["del llm", "llm = None"])
def test_what_nobody_holds_any_more_is_ended(program: Any, tmp_path: Path, end: str) -> None:
    code = BEGIN + f"{end}\nimport gc; gc.collect()\nprint('gone', flush=True)\nsys.stdin.readline()\n"
    process = program(code)
    assert process.stdout.readline() == "gone\n"
    wait_until(lambda: len(processes(tmp_path)) == 1, 10.0, "only the program itself to run")


def test_a_block_that_is_left_by_an_error(program: Any, tmp_path: Path) -> None:
    code = BEGIN + "with llm: raise ValueError('mine')\n"
    _, stderr = program(code).communicate(timeout=30)
    assert stderr.rstrip().endswith("ValueError: mine")
    assert not processes(tmp_path)


def test_a_program_that_fails(program: Any, tmp_path: Path) -> None:
    process = program(BEGIN + "raise SystemExit(3)\n")
    assert process.wait(30) == 3
    assert not processes(tmp_path)


def test_ctrl_c_in_the_middle_of_the_work(program: Any, tmp_path: Path) -> None:
    process = program(BUSY)
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert not processes(tmp_path)


def test_after_ctrl_c_the_model_answers_on(program: Any) -> None:
    code = BEGIN + (
        "import signal, os\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n    llm.generate(['Hello'] * 5000, SamplingParams(max_tokens=500, ignore_eos=True))\n"
        "except KeyboardInterrupt:\n    print(llm.generate('The capital of France is', SamplingParams(temperature=0))[0].outputs[0].text)\n"
    )
    stdout, stderr = program(code).communicate(timeout=30)
    assert stdout.startswith(" Paris."), stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_program_takes_all(program: Any, tmp_path: Path, how: signal.Signals) -> None:
    process = program(BUSY)
    assert process.stdout.readline() == "busy\n"
    process.send_signal(how)
    assert process.wait(10) == -how
    wait_until(lambda: not processes(tmp_path), 3.0, "what it ran to end")


def test_no_port_is_opened(program: Any, tmp_path: Path) -> None:
    assert program(BUSY).stdout.readline() == "busy\n"
    for process in processes(tmp_path):
        listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert all(c.laddr.ip in ("127.0.0.1", "::1") for c in listening)
        assert not listening, process.cmdline()


def test_the_package_itself_stays_light() -> None:
    code = "import sys, xi_core; assert not {m for m in sys.modules if m.startswith('xi_core.') or m in ('asyncio', 'msgspec', 'zmq')}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
