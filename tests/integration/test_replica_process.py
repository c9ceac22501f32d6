"""The replica's real process, started as a worker starts it, with the fake engines."""

import contextlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xi_core.testing.harness import plan_for
from xi_core.wire.plan import LaunchPlan, ServingLimits


class Process:
    """A replica, its reports in a queue."""

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
        while True:
            report = self.reports.get(timeout=30)
            self.seen.append(report.get("stage", report["type"]))
            if report["type"] == kind:
                return report

    def stderr(self) -> str:
        assert self.child.stderr is not None
        return self.child.stderr.read().decode()


@contextlib.contextmanager
def replica(plan: LaunchPlan, path: Path | None = None) -> Iterator[Process]:
    process = Process(plan, path)
    try:
        yield process
    finally:
        process.child.kill()
        process.child.wait(10)
        assert process.child.stdin is not None
        assert process.child.stderr is not None
        process.child.stdin.close()
        process.child.stderr.close()


def fake(folder: Path, engine: str = "xi_core.testing.fakes:CountingEngine", **options: Any) -> LaunchPlan:
    plan = plan_for(engine, "nowhere", "fake", **options)
    plan.endpoint = f"ipc://{folder}/r.sock"
    plan.limits = ServingLimits(grace=1.0, hang_timeout=0.5)
    return plan


def test_stages_then_ready_then_health(tmp_path: Path) -> None:
    with replica(fake(tmp_path)) as process:
        ready = process.until("ready")
        assert process.seen[:-1] == ["importing", "loading", "loading", "warming up"]
        assert ready["context_length"] == 512
        assert ready["slots"] == 4
        assert "/v1/chat/completions" in ready["manifest"]["endpoints"]
        health = process.until("health")
        assert health["healthy"] is True
        assert health["steps"] > 0, "READY means that a token was made"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_a_clean_exit(tmp_path: Path, how: signal.Signals) -> None:
    with replica(fake(tmp_path)) as process:
        process.until("ready")
        process.child.send_signal(how)
        assert process.child.wait(10) == 0
        assert not (tmp_path / "r.sock").exists()


def test_the_end_of_stdin_ends_it(tmp_path: Path) -> None:
    with replica(fake(tmp_path)) as process:
        process.until("ready")
        assert process.child.stdin is not None
        process.child.stdin.close()
        assert process.child.wait(2) == 3


BAD = """
import time
from xi_core.errors import ArtifactError
from xi_core.testing.fakes import CountingEngine

class Unloadable(CountingEngine):
    def load(self, plan, progress):
        raise ArtifactError("weights.bin is damaged")

class Crashing(CountingEngine):
    def load(self, plan, progress):
        raise ValueError("something else")

class Tokenless(CountingEngine):
    def step(self):
        raise RuntimeError("out of memory")

class Slow(CountingEngine):
    def load(self, plan, progress):
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("engine", "code", "words"),
    [
        ("bad_engine:Unloadable", "artifact_error", "weights.bin is damaged"),
        ("bad_engine:Crashing", "engine_error", "ValueError: something else"),
        ("bad_engine:Tokenless", "engine_error", "out of memory"),
        ("no_such_library:Engine", "engine_not_installed", "no_such_library"),
        ("bad_engine:Missing", "plugin_error", "has no 'Missing'"),
        ("pathlib:Path", "plugin_error", "no TokenEngine, ApiEngine or PoolingEngine"),
    ],
)
def test_what_can_not_be_brought_up_is_reported_and_ends(tmp_path: Path, engine: str, code: str, words: str) -> None:
    (tmp_path / "bad_engine.py").write_text(BAD)
    with replica(fake(tmp_path, engine), tmp_path) as process:
        error = process.until("failed")["error"]
        assert (error["code"], words in error["message"]) == (code, True), error
        assert process.child.wait(10) == 1


def test_a_stop_while_it_loads(tmp_path: Path) -> None:
    (tmp_path / "bad_engine.py").write_text(BAD)
    with replica(fake(tmp_path, "bad_engine:Slow"), tmp_path) as process:
        while process.until("stage")["stage"] != "loading":
            pass
        process.child.terminate()
        assert process.child.wait(5) == 0
