"""A replica's real process, started as a worker starts it: its reports in a queue, its end in the test's hands."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from xi_core.wire.plan import LaunchPlan


class ReplicaProcess:
    """`reports` holds what it has told that wasn't waited for; `seen` are the stages, and the kinds of reports, that were."""

    def __init__(self, plan: LaunchPlan, path: Path | None = None) -> None:
        read, write = os.pipe()
        environment = {**os.environ, "PYTHONPATH": str(path or "")}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "xi_core.replica", "--report-fd", str(write)],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(write,), start_new_session=True, env=environment,
        )  # fmt: skip
        os.close(write)
        assert self.child.stdin is not None
        data = msgspec.msgpack.encode(plan)
        self.child.stdin.write(struct.pack(">I", len(data)) + data)
        self.child.stdin.flush()
        self.reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.seen: list[str] = []
        threading.Thread(target=self._read, args=(read,), daemon=True).start()

    def _read(self, fd: int) -> None:
        with open(fd, encoding="utf-8") as lines:
            for line in lines:
                self.reports.put(json.loads(line))

    def until(self, kind: str) -> dict[str, Any]:
        """The next report of a kind, such as `ready`. Raises `queue.Empty` when none has come in 30 seconds."""
        while True:
            report = self.reports.get(timeout=30)
            self.seen.append(report.get("stage", report["type"]))
            if report["type"] == kind:
                return report

    def stderr(self) -> str:
        """All that it wrote there; waits for its end."""
        assert self.child.stderr is not None
        return self.child.stderr.read().decode()


@contextlib.contextmanager
def replica(plan: LaunchPlan, path: Path | None = None) -> Iterator[ReplicaProcess]:
    """A process for `plan`, which listens on the plan's endpoint; `path` is a folder of modules for it. Killed at the end."""
    process = ReplicaProcess(plan, path)
    try:
        yield process
    finally:
        process.child.kill()
        process.child.wait(10)
        assert process.child.stdin is not None
        assert process.child.stderr is not None
        process.child.stdin.close()
        process.child.stderr.close()
