"""Logs of replicas that have ended don't fill the disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from xi_core.cluster import logs


def written(home: Path, name: str, age: float) -> Path:
    """The log of a replica that ended so many seconds ago, and the one before."""
    path = logs.log_file(home, name)
    for _ in range(2):
        logs.open_log(home, name).close()
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    return path


def test_the_oldest_are_deleted_with_those_before_them(tmp_path: Path) -> None:
    paths = [written(tmp_path, f"m-{age}", age) for age in range(5)]
    logs.forget(tmp_path / "logs", kept=2)
    assert [path.exists() for path in paths] == [True, True, False, False, False]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["m-0.log", "m-0.log.1", "m-1.log", "m-1.log.1"]


def test_the_log_of_a_process_that_runs_is_kept_however_quiet_it_is(tmp_path: Path) -> None:
    with logs.open_log(tmp_path, "quiet") as log:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
    path = logs.log_file(tmp_path, "quiet")
    os.utime(path, (0, 0))
    newer = written(tmp_path, "newer", 0)
    try:
        logs.forget(path.parent, kept=1)
        assert (path.exists(), newer.exists()) == (True, True)
    finally:
        process.communicate()
    logs.forget(path.parent, kept=1)
    assert (path.exists(), newer.exists()) == (False, True)


def test_a_launch_forgets_old_logs(tmp_path: Path) -> None:
    path = written(tmp_path, "old", 3600)
    for n in range(logs.KEPT + 1):
        logs.open_log(tmp_path, f"m-{n}").close()
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == logs.KEPT + 1


def test_no_folder_is_no_error(tmp_path: Path) -> None:
    logs.forget(tmp_path / "nowhere")
