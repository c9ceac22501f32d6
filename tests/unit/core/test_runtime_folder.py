"""The folder in which the sockets of one server lie."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from xi_core.cluster import runtime
from xi_core.errors import ConfigError


def test_runtime_folders_of_the_dead_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(runtime, "LONGEST", 1000)
    alive = runtime.RuntimeFolder()
    dead = tmp_path / "xi-123-abc"
    dead.mkdir()
    (dead / runtime.LOCK).write_text("")
    (dead / "x.sock").write_text("")
    other = tmp_path / "xi-notes-x"
    other.mkdir()
    unlocked = tmp_path / "xi-5-mine"
    unlocked.mkdir()
    try:
        assert alive.path.stat().st_mode & 0o777 == 0o700
        runtime.sweep()
        assert alive.path.is_dir()
        assert other.is_dir()
        assert unlocked.is_dir(), "a folder without a lock is nobody's that we know"
        assert not dead.exists()
    finally:
        alive.remove()
    assert not alive.path.exists()


def test_a_temporary_directory_with_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    short = Path(tempfile.mkdtemp(prefix="xi-test-", dir="/tmp"))
    long.mkdir()
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(long))
    monkeypatch.setattr(runtime, "FALLBACK", str(short))
    try:
        folder = runtime.RuntimeFolder()
        assert folder.path.parent == short
        assert len(os.fsencode(folder.path)) <= runtime.LONGEST
        folder.remove()
        monkeypatch.setattr(runtime, "FALLBACK", "/nowhere")
        with pytest.raises(ConfigError, match="is too long a path for sockets; set TMPDIR"):
            runtime.RuntimeFolder()
    finally:
        short.rmdir()


def test_no_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.tempfile, "tempdir", None)
    monkeypatch.setattr(runtime.tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    runtime.sweep()
    with pytest.raises(ConfigError, match="set TMPDIR to a directory that can be written"):
        runtime.RuntimeFolder()


def test_a_folder_that_another_launchers_sweep_took_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(runtime, "LONGEST", 1000)
    lock, made = runtime.fcntl.flock, []

    def swept(descriptor: int, how: int) -> None:
        made.append(descriptor)
        if len(made) == 1:
            shutil.rmtree(next(tmp_path.iterdir()))
        lock(descriptor, how)

    monkeypatch.setattr(runtime.fcntl, "flock", swept)
    folder = runtime.RuntimeFolder()
    assert (folder.path / runtime.LOCK).exists()
    assert len(made) == 2
    folder.remove()
