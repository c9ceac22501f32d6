"""How fast a model's files are verified: the cache's own hashing beside `sha256sum`, in turns, of one file and of several at once.

The files are in the system's page cache, so that no disk is measured.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.results import Row, ratio, report
from xi_core.machine import cpus
from xi_core.models.hashing import CachedFile, sha256_of, verify_files

LEAST = 0.8
MIB = 1024 * 1024
PART = 16 * MIB


def make(folder: Path, count: int, size: int) -> list[CachedFile]:
    """So many files of so many bytes of noise, as a model's weights are to a hash."""
    folder.mkdir()
    files = []
    for n in range(count):
        path = folder / f"part-{n}.safetensors"
        with path.open("wb") as file:
            for _ in range(0, size, PART):
                file.write(os.urandom(PART))
        files.append(CachedFile(name=path.name, size=size, sha256=sha256_of(path)))
    return files


def _ours(folder: Path, files: list[CachedFile]) -> None:
    if (found := verify_files(folder, files, lambda done, total: None)) is not None:
        raise AssertionError(found)


def _theirs(folder: Path, files: list[CachedFile]) -> None:
    """`sha256sum` of each file, as many at once as there are processors."""

    def one(file: CachedFile) -> None:
        told = subprocess.run(["sha256sum", file.name], cwd=folder, check=True, capture_output=True, text=True).stdout
        if not told.startswith(file.sha256):
            raise AssertionError(told)

    with ThreadPoolExecutor(cpus()) as pool:
        list(pool.map(one, files))


def _rate(verify: Callable[[Path, list[CachedFile]], None], folder: Path, files: list[CachedFile]) -> float:
    """MiB per second."""
    began = time.perf_counter()
    verify(folder, files)
    return sum(file.size for file in files) / MIB / (time.perf_counter() - began)


def _compare(what: str, folder: Path, files: list[CachedFile], repetitions: int) -> Row:
    pairs = []
    for n in range(repetitions):  # who begins alternates
        first, second = (_rate(side, folder, files) for side in ((_ours, _theirs) if n % 2 else (_theirs, _ours)))
        pairs.append((first, second) if n % 2 else (second, first))
    return ratio(what, "MiB/s", "sha256sum", pairs, least=LEAST)


def run(*, quick: bool, save: bool) -> bool:
    """Measure and report. True when all targets are met."""
    whole, repetitions = (256 * MIB, 3) if quick else (1024 * MIB, 5)
    with tempfile.TemporaryDirectory(prefix="xi-bench-") as directory:
        one, several = Path(directory) / "one", Path(directory) / "several"
        rows = [
            _compare(f"one file of {whole // MIB} MiB", one, make(one, 1, whole), repetitions),
            _compare(f"8 files of {whole // 8 // MIB} MiB at once", several, make(several, 8, whole // 8), repetitions),
        ]
    return report("hashing", rows, {"processors": cpus()}, save=save)
