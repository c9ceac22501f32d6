"""Processes that the benchmarks start and measure. Each runs in a session of its own and is killed with all that it started."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil  # type: ignore[import-untyped]  # dev environment has no stubs

ROOT = Path(__file__).resolve().parent.parent
"""The repository, from where `python -m benchmarks.stubs` works."""
READY = 60.0
"""Seconds in which a process must be ready."""


class NotReady(Exception):
    """A process ended or did nothing where it should have got ready. The text holds the end of its output."""


class Child:
    """A running process. `with Child(argv) as child: …` kills it at the end, with everything that it started."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """`env` is added to this process's environment."""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._output: list[str] = []
        self._process = subprocess.Popen(
            argv, cwd=ROOT, env={**os.environ, **(env or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self._threads = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def line(self, timeout: float = READY) -> str:
        """The next line of its standard output. Raises `NotReady`."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise NotReady(f"process {self.pid} wrote no line within {timeout:g} s\n{self.output()}") from None
        if line is None:
            raise NotReady(f"process {self.pid} ended before it was ready\n{self.output()}")
        return line

    def hear(self, text: str, timeout: float = READY) -> None:
        """Wait until it has written this, to whichever output. Raises `NotReady`."""
        deadline = time.monotonic() + timeout
        while text not in "".join(self._output):
            if time.monotonic() > deadline:
                raise NotReady(f"process {self.pid} did not write '{text}' within {timeout:g} s\n{self.output()}")
            if not self.running():
                self._join_readers()  # what it wrote last may not be read yet
                if text in "".join(self._output):
                    return
                raise NotReady(f"process {self.pid} ended and did not write '{text}'\n{self.output()}")
            time.sleep(0.02)

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        if self._process.stdin is None:
            raise NotReady(f"process {self.pid} has no standard input")
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def output(self) -> str:
        """The last lines of all that it wrote."""
        return "".join(self._output[-30:])

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants that live."""
        try:
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self, grace: float = 8.0) -> None:
        """SIGTERM, and SIGKILL for whatever is left of it after `grace` seconds."""
        family = self.family()
        if self.running():
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._join_readers()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _join_readers(self) -> None:
        for thread in self._threads:
            thread.join(1.0)

    def _read_lines(self) -> None:
        for line in self._process.stdout or ():
            self._output.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        for line in self._process.stderr or ():
            self._output.append(line)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads, user and system. To the nanosecond on Linux, else to the clock's tick."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # the kernel's number for the CPU clock of another process
    except (AttributeError, OSError, OverflowError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


def family_cpu(family: Sequence[psutil.Process]) -> float:
    """CPU time of processes in seconds, and of their children that have ended already."""
    total = 0.0
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += cpu_seconds(process.pid) + times.children_user + times.children_system
    return total


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises `SystemExit`, so that children are stopped on the way out."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
