"""Downloads that nobody waits for any more: what they find wrong then is no longer theirs to delete."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from xi_core.config import settings
from xi_core.errors import ArtifactError
from xi_core.models import downloading
from xi_core.models.downloading import Download, Transient, part_of
from xi_core.models.family import SourceRef
from xi_core.models.hashing import Stopped
from xi_core.models.hub import HubSource, Listing
from xi_core.models.hub_files import HubFile
from xi_core.testing.hub_standin import Fault, HubModel, HubStandIn
from xi_core.testing.waiting import wait_until

ID = "people/ended"
NAME = "model.safetensors"


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def test_a_range_that_is_refused_after_the_end_deletes_nothing(model_hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    model_hub.models[ID] = HubModel(files={NAME: b"x" * 5000})
    where = f"/storage/{ID}/{NAME}" if source.name == "huggingface" else f"FilePath={NAME}"
    ref = SourceRef(source=source.name, id=ID)
    listing, ended = source.listing(ref), threading.Event()
    file = listing.files[0]
    download = Download(1, file, lambda download, fresh: None, ended)
    path, _ = part_of(tmp_path, file, download)
    path.write_bytes(b"x" * 2000)
    model_hub.faults = [Fault(where=where, status=416, times=2)]
    ended.set()
    with pytest.raises(Stopped):
        source.download(ref, listing, file, tmp_path, download)
    assert path.read_bytes() == b"x" * 2000, "another launch may go on with it"
    ended.clear()
    with pytest.raises(Transient, match="from the beginning"):
        source.download(ref, listing, file, tmp_path, download)
    assert not path.exists()


class Late(HubSource):
    """Its first file is short, and comes when the second has long failed."""

    name = "late"

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.path = Path()

    def listing(self, ref: SourceRef) -> Listing:
        return Listing(commit="0123456789", files=[HubFile(name=NAME, size=100), HubFile(name="config.json", size=10)])

    def download(self, ref: SourceRef, listing: Listing, file: HubFile, folder: Path, download: Download) -> Path:
        if file.name != NAME:
            assert self.begun.wait(30)
            raise ArtifactError("it is no longer there")
        self.path = folder / "part"
        self.path.write_bytes(b"short")
        self.begun.set()
        assert self.go_on.wait(30)
        return self.path


def test_a_short_file_that_comes_after_the_end_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "LEAVE", 0.0)
    for name in ("XI_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    late = Late()
    with pytest.raises(ArtifactError, match="no longer there"):
        late.fetch(SourceRef(source="late", id=ID), tmp_path, quiet)
    late.go_on.set()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "download"], 30, "the end of the thread")
    assert late.path.read_bytes() == b"short"
