"""Launches of some files of a repository and of all of it, one after the other, against a stand-in for the hubs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from xi_core.config import settings
from xi_core.errors import ArtifactError, LaunchCancelled
from xi_core.models.cache import MANIFEST, CachedModel, ModelCache
from xi_core.models.family import SourceRef
from xi_core.models.hub import HubSource
from xi_core.testing.hub_standin import HubModel, HubStandIn

ID = "people/several-files"
FILES = {"m-Q4_K_M.gguf": b"four" * 1000, "m-Q8_0.gguf": b"eight" * 1000, "mmproj.gguf": b"p" * 300, "config.json": b"{}"}
ONE = ("*q4_k_m*.gguf",)


@pytest.fixture
def hub(model_hub: HubStandIn) -> HubStandIn:
    model_hub.models[ID] = HubModel(files=dict(FILES))
    return model_hub


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def fetched(source: HubSource, home: Path, *files: str) -> Path:
    return source.fetch(SourceRef(source=source.name, id=ID, files=files), home, quiet)


def names(path: Path) -> set[str]:
    return {one.name for one in path.iterdir()} - {MANIFEST}


def manifest(home: Path) -> CachedModel:
    (model,) = ModelCache(home).models()
    return model


def test_one_file_first_and_then_the_repository(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    one = fetched(source, tmp_path, *ONE)
    assert names(one.parent) == {"m-Q4_K_M.gguf"}
    assert not manifest(tmp_path).whole
    fetched(source, tmp_path, "*q8_0*.gguf")
    assert not manifest(tmp_path).whole
    asked = len(hub.gets("Q4_K_M"))
    assert names(fetched(source, tmp_path)) == set(FILES)
    assert len(hub.gets("Q4_K_M")) == asked, "what was there isn't got again"
    assert manifest(tmp_path).whole
    hub.stop()
    assert names(fetched(source, tmp_path)) == set(FILES), "it is whole, and nobody is asked"
    assert fetched(source, tmp_path, *ONE) == one


def test_the_repository_offline_after_one_file(hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(source, tmp_path, *ONE)
    monkeypatch.setenv("XI_OFFLINE", "1")
    settings.cache_clear()
    with pytest.raises(ArtifactError, match="not whole"):
        fetched(source, tmp_path)


def test_a_pull_of_one_file_leaves_a_whole_repository_whole(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    path = fetched(source, tmp_path)
    source.pull(SourceRef(source=source.name, id=ID, files=ONE), tmp_path, quiet)
    assert manifest(tmp_path).whole
    assert names(path) == set(FILES)
    lost = next(file for file in manifest(tmp_path).files if file.name == "m-Q8_0.gguf")
    (tmp_path / "models" / "blobs" / lost.sha256).unlink()
    source.pull(SourceRef(source=source.name, id=ID, files=ONE), tmp_path, quiet)
    assert not manifest(tmp_path).whole, "a file of it was damaged, and left out"
    assert names(fetched(source, tmp_path)) == set(FILES)


def test_a_manifest_of_before_counts_as_whole(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    path = fetched(source, tmp_path)
    old = msgspec.json.decode((path / MANIFEST).read_bytes())
    del old["whole"]
    (path / MANIFEST).write_bytes(msgspec.json.encode(old))
    hub.stop()
    assert fetched(source, tmp_path) == path


def test_a_launch_that_is_ended_while_the_other_files_are_hashed_publishes_nothing(
    hub: HubStandIn, source: HubSource, tmp_path: Path
) -> None:
    """Those that are there already are verified for the manifest too; it is told, which gives the launch the time for it."""
    fetched(source, tmp_path, *ONE)
    before = manifest(tmp_path)
    told: list[tuple[str, float | None]] = []

    def progress(stage: str, share: float | None, *_: object) -> None:
        told.append((stage, share))
        if stage == "verifying the files":
            raise LaunchCancelled("nobody wants it")

    ref = SourceRef(source=source.name, id=ID, files=("*q8_0*.gguf",))
    with pytest.raises(LaunchCancelled):
        source.fetch(ref, tmp_path, progress)
    assert told[-1] == ("verifying the files", 1.0), "the other file is read in one piece"
    assert manifest(tmp_path) == before
    source.fetch(ref, tmp_path, quiet)
    assert {file.name for file in manifest(tmp_path).files} == {"m-Q4_K_M.gguf", "m-Q8_0.gguf"}
