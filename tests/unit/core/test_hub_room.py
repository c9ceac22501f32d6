"""What a download still needs of the disk, and when it is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from xi_core.errors import ArtifactError
from xi_core.models import hub_room
from xi_core.models.downloading import part_path
from xi_core.models.hub_files import HubFile
from xi_core.models.hub_room import room_for, still_needed

FILES = [HubFile(name=f"file-{n}", size=1000) for n in range(3)]


def put(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def free(monkeypatch: pytest.MonkeyPatch, size: int, total: int = 10**9) -> None:
    monkeypatch.setattr(hub_room.shutil, "disk_usage", lambda path: SimpleNamespace(free=size, total=total))


def test_what_came_in_part_isnt_needed_again(tmp_path: Path) -> None:
    assert still_needed(FILES, tmp_path / "none") == 3000
    put(part_path(tmp_path, FILES[0]), 300)
    put(part_path(tmp_path, FILES[1]), 1000)
    assert still_needed(FILES, tmp_path) == 1700
    assert still_needed(FILES[2:], tmp_path) == 1000, "parts of others don't help"
    put(tmp_path / ".kept" / ("0" * 64), 500)
    put(tmp_path / f"{'0' * 40}.sha256", 64)
    assert still_needed(FILES, tmp_path) == 1700, "nor do files that it has already"
    put(part_path(tmp_path, FILES[0]), 5000)
    assert still_needed(FILES, tmp_path) == 1000, "one that is too long is begun anew"
    put(tmp_path / ".cache" / "huggingface" / "download" / "x.incomplete", 400)
    put(tmp_path / "file-2", 100)
    assert still_needed(FILES, tmp_path) == 500, "what a hub's library left is written over"
    put(tmp_path / ".cache" / "y.incomplete", 9000)
    assert still_needed(FILES, tmp_path) == 0


def test_what_doesnt_fit_is_refused_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2999)
    folder = tmp_path / "partial"
    with (
        pytest.raises(ArtifactError, match=r"a/m needs 3 kB more in \S+, and 3 kB are free.*xi remove-cache.*XI_HOME") as refused,
        room_for("a/m", tmp_path, folder, FILES, lambda: 0),
    ):
        pytest.fail("it was begun")
    assert str(tmp_path) in refused.value.message
    assert "other downloads" not in refused.value.message
    free(monkeypatch, 3000)
    with room_for("a/m", tmp_path, folder, FILES, lambda: 0):
        pass
    free(monkeypatch, 0, total=0)
    with room_for("a/m", tmp_path, folder, FILES, lambda: 0):
        pass  # a file system that doesn't tell
    free(monkeypatch, 0)
    with room_for("a/m", tmp_path, folder, [], lambda: 0):
        pass  # nothing is to come


def test_other_downloads_have_their_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as they still need: what came of them is no longer free."""
    come = 0
    free(monkeypatch, 5000)
    with room_for("a/first", tmp_path, tmp_path / "first", FILES, lambda: come):
        with (
            pytest.raises(ArtifactError, match=r"a/second needs 3 kB .* 5 kB are free .*, of which other downloads still need 3 kB;"),
            room_for("a/second", tmp_path, tmp_path / "second", FILES, lambda: 0),
        ):
            pytest.fail("it was begun")
        come = 2500
        free(monkeypatch, 3500)
        with room_for("a/second", tmp_path, tmp_path / "second", FILES, lambda: 0):
            pass
    assert not hub_room._running


def test_a_disk_that_doesnt_answer_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="No such file"),
        room_for("a/m", tmp_path / "gone", tmp_path / "gone" / "partial", FILES, lambda: 0),
    ):
        pytest.fail("it was begun")


def test_what_the_download_raises_goes_through(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), room_for("a/m", tmp_path, tmp_path, FILES, lambda: 0):
        raise BrokenPipeError
    assert not hub_room._running
