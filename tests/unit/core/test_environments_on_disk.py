"""Environments of models as a worker finds them, while others use, build and remove them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.cluster import environments as environments_module
from xi_core.cluster.environments import Environments
from xi_core.errors import InvalidRequest

NAMES = ("0" * 16, "1" * 16)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two environments of 110 bytes each."""
    for name in NAMES:
        folder = tmp_path / "envs" / name
        (folder / "lib").mkdir(parents=True)
        (folder / "lock.txt").write_text("six==1.0\n\n")
        (folder / "lib" / "module.py").write_bytes(b"#" * 100)
    return tmp_path


def test_those_that_are_there(home: Path) -> None:
    os.utime(home / "envs" / NAMES[1], (1, 1))
    (home / "envs" / NAMES[0] / "lib" / "link").symlink_to(home)
    (home / "envs" / f"{NAMES[0]}.new").mkdir()
    (home / "envs" / ("2" * 16)).mkdir()
    (home / "envs" / ("3" * 16)).write_text("no folder")
    found = Environments(home, {}).found()
    assert [(one.name, one.packages, one.size) for one in found] == [(name, ["six==1.0"], 110) for name in NAMES]


@pytest.mark.parametrize(("gone", "left"), [("lib/module.py", NAMES), ("", NAMES[1:])])
def test_what_goes_meanwhile_is_left_out(home: Path, monkeypatch: pytest.MonkeyPatch, gone: str, left: tuple[str, ...]) -> None:
    """A temporary file of a model that starts; or the environment itself, which is removed."""
    lost = home / "envs" / NAMES[0] / gone

    def walking(path: Path, *more: object) -> Iterator[tuple[str, list[str], list[str]]]:
        for step in walk(path):
            if lost.is_dir():
                shutil.rmtree(lost)
            lost.unlink(missing_ok=True)
            yield step

    walk = os.walk
    monkeypatch.setattr(environments_module.os, "walk", walking)
    assert {one.name for one in Environments(home, {}).found()} == set(left)


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "relative", "/no/such/folder", "/" + "x" * 300])
def test_a_folder_that_isnt_there_is_refused_with_its_field(home: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no directory of the worker's machine") as raised:
        Environments(home, {}).build([], [text], [], lambda stage, share: None)
    assert raised.value.param == "virtual_env_find_links"
