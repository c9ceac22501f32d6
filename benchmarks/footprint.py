"""What xi takes before it does anything: CPU of `xi --help`, CPU until `xi serve` is ready, memory while idle, size of the base install.

The same of a cluster over TCP: CPU until its head and a worker that joins by its token are ready, memory of that worker with its keeper.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil  # type: ignore[import-untyped]

from benchmarks.processes import ROOT, Child, NotReady, family_cpu
from benchmarks.results import Row, at_most, report
from benchmarks.served import XI, xi_serve
from xi_core.client import Client

MIB = 1024 * 1024
MB = 1000 * 1000
HELP_TARGET = 0.2
READY_TARGET = 2.5
MEMORY_TARGET = 160.0
WORKER_MEMORY_TARGET = 70.0
INSTALL_SECONDS = 20.0
INSTALL_SIZE = 150.0
IDLE = 2.0
"""Seconds between the moment of readiness and the look at the memory."""
NAME = "w1"
"""What the worker of the cluster is called."""


class Cluster(msgspec.Struct, frozen=True):
    """A head and a worker that has joined it: CPU seconds until each was ready, MB of the idle worker (sum of PSS), processes of each."""

    head_cpu: float
    worker_cpu: float
    worker_memory: float
    head_processes: int
    worker_processes: int


def _help_cpu() -> float:
    """CPU seconds of one `xi --help`."""
    before = os.times()
    subprocess.run([str(XI), "--help"], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def _serve() -> tuple[float, float, int]:
    """CPU seconds until it is ready, MiB of idle memory (sum of PSS), and how many processes there are."""
    with tempfile.TemporaryDirectory(prefix="xi-bench-") as home, xi_serve(Path(home)) as (serving, _):
        cpu = family_cpu(serving.family())
        time.sleep(IDLE)
        family = serving.family()
        return cpu, sum(_pss(process) for process in family) / MIB, len(family)


def cluster() -> Cluster:
    """`xi supervisor` on free ports of loopback and an `xi worker` with its token, each with a home of its own. Raises `NotReady`."""
    with contextlib.ExitStack() as stack:
        head_home, worker_home = (stack.enter_context(tempfile.TemporaryDirectory(prefix="xi-bench-")) for _ in range(2))
        argv = [str(XI), "supervisor", "-H", "127.0.0.1", "-p", "0", "--cluster-port", "0", "--no-restore", "--json"]
        env = {"XI_API_KEY": "", "XI_GRACE": "2"}
        head = stack.enter_context(Child(argv, {**env, "XI_HOME": head_home}))
        word = json.loads(head.line())
        head_family = head.family()
        head_cpu = family_cpu(head_family)
        argv = [str(XI), "worker", "-e", word["cluster_endpoint"], "--name", NAME]
        worker = stack.enter_context(Child(argv, {**env, "XI_HOME": worker_home, "XI_JOIN_TOKEN": word["join_token"]}))
        worker.hear("has joined the cluster")
        keeper, family = _keeper(word["endpoint"]), worker.family()
        worker_cpu = family_cpu(family)
        if keeper not in [process.pid for process in family]:  # it would be left out
            raise NotReady(f"`xi worker` has no keeper below it: {keeper}, {family}\n{worker.output()}")
        time.sleep(IDLE)
        family = worker.family()
        return Cluster(head_cpu, worker_cpu, sum(_pss(process) for process in family) / MB, len(head_family), len(family))


def _keeper(endpoint: str) -> int | None:
    """The process id of the worker's keeper, as the cluster knows it."""
    processes = Client(endpoint).cluster().processes
    return next((process.pid for process in processes if (process.role, process.name) == ("keeper", NAME)), None)


def _pss(process: psutil.Process) -> int:
    """Proportional set size in bytes; where the system doesn't tell it, the unshared part."""
    full = process.memory_full_info()
    return int(getattr(full, "pss", full.uss))


def _install() -> tuple[float, float, list[str]]:
    """Seconds to install the base distribution in a fresh environment, its size in MiB, and the packages that came along."""
    with tempfile.TemporaryDirectory(prefix="xi-bench-") as directory:
        environment = Path(directory) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        began = time.perf_counter()
        subprocess.run([*pip, "install", "--quiet", str(ROOT)], check=True)
        seconds = time.perf_counter() - began
        listed = subprocess.run([*pip, "list", "--format", "freeze"], check=True, capture_output=True, text=True).stdout
        size = sum(path.lstat().st_blocks * 512 for path in environment.rglob("*"))
        return seconds, size / MIB, listed.split()


def _install_rows() -> Sequence[Row]:
    seconds, size, packages = _install()
    torch = sum(package.startswith("torch==") for package in packages)
    return [
        at_most("base install: time", "s", seconds, INSTALL_SECONDS),
        at_most("base install: environment", "MiB", size, INSTALL_SIZE),
        at_most("base install: torch", "packages", torch, 0),
    ]


def cluster_rows(found: Sequence[Cluster]) -> list[Row]:
    """The medians of what was measured."""
    head, worker = statistics.median(one.head_cpu for one in found), statistics.median(one.worker_cpu for one in found)
    memory = statistics.median(one.worker_memory for one in found)
    return [
        at_most("xi supervisor until ready, all processes", "CPU-s", head, READY_TARGET),
        at_most("xi worker over TCP until it has joined, with its keeper", "CPU-s", worker, READY_TARGET),
        at_most("xi worker over TCP idle, with its keeper (PSS)", "MB", memory, WORKER_MEMORY_TARGET),
    ]


def run(*, quick: bool, save: bool, install: bool) -> bool:
    """Measure and report. True when all targets are met."""
    repetitions = 1 if quick else 3
    helps = [_help_cpu() for _ in range(2 * repetitions + 1)][1:]
    served = [_serve() for _ in range(repetitions)]
    clusters = [cluster() for _ in range(repetitions)]
    rows = [
        at_most("xi --help", "CPU-s", statistics.median(helps), HELP_TARGET),
        at_most("xi serve until ready, all processes", "CPU-s", statistics.median(cpu for cpu, _, _ in served), READY_TARGET),
        at_most("xi serve idle, all processes (PSS)", "MiB", statistics.median(memory for _, memory, _ in served), MEMORY_TARGET),
        *cluster_rows(clusters),
    ]
    if install:
        rows += _install_rows()
    of_cluster = {"processes of the head": clusters[0].head_processes, "processes of the worker": clusters[0].worker_processes}
    return report("footprint", rows, {"processes": served[0][2], **of_cluster}, save=save)
