"""What xi takes before it does anything: CPU of `xi --help`, CPU until `xi serve` is ready, memory while idle, size of the base install."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks.processes import ROOT, family_cpu
from benchmarks.results import Row, at_most, report
from benchmarks.served import XI, xi_serve

MIB = 1024 * 1024
HELP_TARGET = 0.2
READY_TARGET = 2.5
MEMORY_TARGET = 160.0
INSTALL_SECONDS = 20.0
INSTALL_SIZE = 150.0
IDLE = 2.0
"""Seconds between the moment of readiness and the look at the memory."""


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


def run(*, quick: bool, save: bool, install: bool) -> bool:
    """Measure and report. True when all targets are met."""
    repetitions = 1 if quick else 3
    helps = [_help_cpu() for _ in range(2 * repetitions + 1)][1:]
    served = [_serve() for _ in range(repetitions)]
    rows = [
        at_most("xi --help", "CPU-s", statistics.median(helps), HELP_TARGET),
        at_most("xi serve until ready, all processes", "CPU-s", statistics.median(cpu for cpu, _, _ in served), READY_TARGET),
        at_most("xi serve idle, all processes (PSS)", "MiB", statistics.median(memory for _, memory, _ in served), MEMORY_TARGET),
    ]
    if install:
        rows += _install_rows()
    return report("footprint", rows, {"processes": served[0][2]}, save=save)
