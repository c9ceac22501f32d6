"""What the cache of models asks of the file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xi_core.models.cache_disk import link_to


@pytest.mark.parametrize("symbolic", [False, True])
def test_a_link_that_is_there_already_is_left_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbolic: bool) -> None:
    """A blob that had none for a moment might be swept away in it."""
    blob, target = tmp_path / "blob", tmp_path / "kept"
    blob.write_bytes(b"1")

    def unknown(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    def gone(*_: object, **__: object) -> None:
        pytest.fail("the blob is without its link")

    with monkeypatch.context() as patch:
        if symbolic:
            patch.setattr(os, "link", unknown)
        link_to(blob, target)
    monkeypatch.setattr(Path, "unlink", gone)
    link_to(blob, target)
    assert os.path.samefile(blob, target)
    assert target.is_symlink() is symbolic


def test_a_link_to_another_file_is_replaced(tmp_path: Path) -> None:
    blob, target = tmp_path / "blob", tmp_path / "kept"
    blob.write_bytes(b"new")
    target.write_bytes(b"old")
    link_to(blob, target)
    assert target.read_bytes() == b"new"
