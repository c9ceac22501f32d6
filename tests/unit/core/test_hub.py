"""Sources over the network: what a launch hears while another downloads its model, and how often a download may break."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from xi_core.config import settings
from xi_core.errors import ArtifactError
from xi_core.models import hub as hub_module
from xi_core.models.downloading import Download, Transient
from xi_core.models.family import SourceRef
from xi_core.models.hub import TRIES, HubSource, Listing
from xi_core.models.hub_files import HubFile
from xi_core.testing.waiting import wait_until

BODY = b"0123456789" * 30
FILE = HubFile(name="model.safetensors", size=len(BODY), sha256=hashlib.sha256(BODY).hexdigest())


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XI_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_module, "BACKOFF", 0.0)
    settings.cache_clear()


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


class Stub(HubSource):
    """A hub with one file."""

    name = "stub"

    def listing(self, ref: SourceRef) -> Listing:
        return Listing(commit="0123456789", files=[FILE])


class Trickling(Stub):
    """It sends the first and the second third, and the rest once it is let."""

    def __init__(self) -> None:
        self.begun, self.more, self.rest = threading.Event(), threading.Event(), threading.Event()

    def download(self, ref: SourceRef, listing: Listing, file: HubFile, folder: Path, download: Download) -> Path:
        path = folder / "part"
        path.write_bytes(BODY[:100])
        self.begun.set()
        assert self.more.wait(30)
        path.write_bytes(BODY[:200])
        assert self.rest.wait(30)
        path.write_bytes(BODY)
        return path


def test_a_launch_that_waits_for_another_s_download_tells_a_share_only_when_bytes_came(tmp_path: Path) -> None:
    """A share gives it more time: it has that as long as the download gets further, and no longer."""
    source, ref = Trickling(), SourceRef(source="stub", id="a/b")
    found: list[Path] = []
    told: list[tuple[str, float | None]] = []
    threads = [
        threading.Thread(target=lambda progress=progress: found.append(source.fetch(ref, tmp_path, progress)))
        for progress in (quiet, lambda stage, share, *_: told.append((stage, share)))
    ]
    threads[0].start()
    assert source.begun.wait(30)
    threads[1].start()
    wait_until(lambda: len(told) >= 3, 30)
    assert {share for _, share in told} == {None}, "nothing comes"
    source.more.set()
    wait_until(lambda: any(share is not None for _, share in told), 30)
    grown = len(told)
    wait_until(lambda: len(told) >= grown + 3, 30)
    assert len([share for _, share in told if share is not None]) == 1
    assert all(stage.startswith("another launch downloads a/b: ") for stage, _ in told)
    source.rest.set()
    for thread in threads:
        thread.join(30)
    assert found[0] == found[1]
    assert (found[0] / FILE.name).read_bytes() == BODY


class Breaking(Stub):
    """Its file comes damaged first. After that the connection breaks often, each time after some more bytes."""

    def __init__(self) -> None:
        self.damaged, self.breaks = False, 0

    def download(self, ref: SourceRef, listing: Listing, file: HubFile, folder: Path, download: Download) -> Path:
        path = folder / "part"
        if not self.damaged:
            self.damaged = True
            path.write_bytes(bytes(len(BODY)))
            download.came(len(BODY))
            return path
        download.resume(10 * self.breaks)
        download.came(10)
        self.breaks += 1
        if self.breaks <= 2 * TRIES:
            raise Transient("the connection broke")
        path.write_bytes(BODY)
        return path


def test_a_file_that_came_damaged_may_break_as_often_as_any_other_while_it_gets_further(tmp_path: Path) -> None:
    source = Breaking()
    path = source.fetch(SourceRef(source="stub", id="a/b"), tmp_path, quiet)
    assert (path / FILE.name).read_bytes() == BODY


def test_a_hub_that_breaks_without_a_byte_of_progress_is_given_up(tmp_path: Path) -> None:
    source = Breaking()
    source.breaks = -1000  # it always goes on before what was there
    with pytest.raises(ArtifactError, match=f"failed {TRIES} times in a row"):
        source.fetch(SourceRef(source="stub", id="a/b"), tmp_path, quiet)
