"""`xi serve` as the first process of a container, by a namespace of process ids of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from xi_core.errors import XiError
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until

NAMESPACE = [
    "unshare",
    *["--map-root-user"] * (os.name == "posix" and os.geteuid() != 0),
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
]


def why_not() -> str:
    """Why there can be no such namespace here; empty: there can be."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "namespaces of process ids need Linux and util-linux's `unshare`"
    done = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, timeout=20)
    return f"this system gives no namespace: {done.stderr.strip()}" if done.returncode else ""


WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


class Contained(RunningServer):
    """It runs below `unshare`, which has one child: the first process."""

    @property
    def first(self) -> psutil.Process:
        (found,) = psutil.Process(self.process.pid).children()
        return found

    def stop(self) -> int:
        """As `docker stop`."""
        self.first.send_signal(signal.SIGTERM)
        return self.process.wait(30.0)


def worker_below(first: psutil.Process) -> psutil.Process | None:
    return next((one for one in first.children(recursive=True) if "xi_core.cluster.worker" in one.cmdline()), None)


def ready(server: RunningServer) -> int:
    try:
        return server.client.model("xi-tiny").ready_replicas
    except XiError:
        return 0


def test_what_a_killed_worker_leaves_is_reaped(tmp_path: Path) -> None:
    script = tmp_path / "contained"
    script.write_text(f'#!/bin/sh\nexec {" ".join(NAMESPACE)} "{Path(sys.executable).with_name("xi")}" "$@"\n')
    script.chmod(0o755)
    with Contained(tmp_path / "home", command=script) as server:
        server.client.launch("xi-tiny", model_engine="llama.cpp")
        worker = worker_below(server.first)
        assert worker is not None
        below = worker.children()
        assert len(below) == 2, "its keeper and a replica"
        worker.kill()
        wait_until(lambda: not any(one.is_running() for one in below), 20.0, "both to be gone, not zombies")
        wait_until(lambda: ready(server) == 1, 60.0, "the model to be back")
        assert server.stop() == 0
