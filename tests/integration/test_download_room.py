"""A download that the disk has no room for is refused before it begins. Against a stand-in for the hubs."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from xi_core.config import settings
from xi_core.errors import ArtifactError, LaunchCancelled
from xi_core.models import hub_room
from xi_core.models.cache import MANIFEST, ModelCache
from xi_core.models.family import SourceRef
from xi_core.models.hub import HubSource, Listing
from xi_core.testing.hub_standin import Fault, HubModel, HubStandIn

ID = "people/roomy"
SIZE = 2_000_000
WEIGHTS = bytes(SIZE)
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "same.safetensors": WEIGHTS}
CONFIG = len(FILES["config.json"])


@pytest.fixture
def hub(model_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> HubStandIn:
    model_hub.models[ID] = HubModel(files=dict(FILES))
    monkeypatch.setenv("XI_DOWNLOAD_WORKERS", "1")
    settings.cache_clear()
    return model_hub


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def weights_of(source: HubSource, id: str = ID) -> str:
    """In the path by which the weights are asked for."""
    return f"/storage/{id}/model.safetensors" if source.name == "huggingface" else f"{id}/repo?Revision=master&FilePath=model.safetensors"


def fetched(source: HubSource, home: Path, id: str = ID) -> None:
    path = source.fetch(SourceRef(source=source.name, id=id), home, quiet)
    assert {one.name: one.read_bytes() for one in path.iterdir() if one.name != MANIFEST} == FILES


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(hub_room.shutil, "disk_usage", lambda path: SimpleNamespace(free=size, total=10**12))


def test_more_than_any_disk_has_is_refused_at_once(
    hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the disk itself says."""
    listing = type(source).listing

    def huge(self: HubSource, ref: SourceRef) -> Listing:
        found = listing(self, ref)
        return Listing(commit=found.commit, files=[msgspec.structs.replace(file, size=10**18) for file in found.files])

    monkeypatch.setattr(type(source), "listing", huge)
    with pytest.raises(ArtifactError, match=rf"{ID} needs 2000000000.0 GB more in {tmp_path}/models, and .* GB are free.*XI_HOME"):
        fetched(source, tmp_path)
    assert not hub.gets(weights_of(source))
    assert not hub.gets("config.json")
    assert ModelCache(tmp_path).models() == []


def test_what_is_there_isnt_needed_again(hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came in part, and two files of one content."""
    free(monkeypatch, SIZE + CONFIG - 1)
    with pytest.raises(ArtifactError, match=f"{ID} needs 2.0 MB more"):
        fetched(source, tmp_path)
    assert not hub.gets(weights_of(source))

    def cancelled(stage: str, *_: object) -> None:
        if "trying again" in stage:
            raise LaunchCancelled("nobody wants it")

    free(monkeypatch, SIZE + CONFIG)
    hub.faults = [Fault(where=weights_of(source), stall_after=1_000_000)]
    with pytest.raises(LaunchCancelled):
        source.fetch(SourceRef(source=source.name, id=ID), tmp_path, cancelled)
    hub.resume.set()
    [part] = [one for one in tmp_path.glob("models/partial/*/*/*/*") if one.is_file() and one.stat().st_size > 500_000]
    left = SIZE - part.stat().st_size
    free(monkeypatch, left - 1)
    with pytest.raises(ArtifactError, match="are free on its disk; nothing was downloaded"):
        fetched(source, tmp_path)
    assert part.exists(), "what came is kept"
    free(monkeypatch, left)
    fetched(source, tmp_path)
    free(monkeypatch, 0)
    fetched(source, tmp_path)
    source.pull(SourceRef(source=source.name, id=ID), tmp_path, quiet)


def test_two_downloads_at_once_have_to_fit_together(
    hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xi_plugins.sources import huggingface, modelscope

    for module in (huggingface, modelscope):
        monkeypatch.setattr(module, "TIMEOUT", 100.0)
    other = "people/second"
    hub.models[other] = HubModel(files={name: body + b"." for name, body in FILES.items()})
    hub.faults = [Fault(where=weights_of(source), stall_after=1_000_000)]
    free(monkeypatch, 3_500_000)
    first = threading.Thread(target=lambda: fetched(source, tmp_path))
    first.start()
    assert hub.stalled.wait(30)
    free(monkeypatch, 2_500_000)
    with pytest.raises(
        ArtifactError, match=rf"{other} needs 2.0 MB more .*2.5 MB are free on its disk, of which other downloads still need"
    ):
        source.fetch(SourceRef(source=source.name, id=other), tmp_path, quiet)
    hub.resume.set()
    first.join(30)
    source.fetch(SourceRef(source=source.name, id=other), tmp_path, quiet)


def test_a_hash_that_a_full_disk_left_empty_is_none(hub: HubStandIn, tmp_path: Path) -> None:
    """Where a file's hash is noted while the disk is full, its note is empty."""
    from xi_plugins.sources.huggingface import HuggingFaceSource

    source = HuggingFaceSource()
    hub.faults = [Fault(where=weights_of(source), status=403)]
    with pytest.raises(ArtifactError, match="refuses"):
        fetched(source, tmp_path)
    [note] = tmp_path.glob("models/partial/*/*/*/*.sha256")
    note.write_text("")
    fetched(source, tmp_path)
