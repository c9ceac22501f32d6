"""The files of one model come several at once, and end as one. Against a stand-in for the hubs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from xi_core.api.transfer import ModelTransfer
from xi_core.config import settings
from xi_core.errors import ArtifactError, LaunchCancelled
from xi_core.models import cache as cache_module
from xi_core.models.cache import MANIFEST, ModelCache
from xi_core.models.family import SourceRef
from xi_core.models.hub import HubSource
from xi_core.testing.hub_standin import Fault, HubModel, HubStandIn
from xi_core.testing.waiting import wait_until

ID = "people/large-model"
PARTS = {f"model-0000{n}-of-00006.safetensors": bytes([n]) * 400_000 for n in range(1, 7)}
NAMES = sorted(PARTS)


@pytest.fixture
def hub(model_hub: HubStandIn) -> HubStandIn:
    model_hub.models[ID] = HubModel(files=dict(PARTS))
    return model_hub


def ref(source: HubSource) -> SourceRef:
    return SourceRef(source=source.name, id=ID)


def request_of(source: HubSource, name: str) -> str:
    """In the path by which a file's bytes are asked for."""
    return f"/storage/{ID}/{name}" if source.name == "huggingface" else f"FilePath={name}"


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def whole(path: Path) -> None:
    assert {one.name: one.read_bytes() for one in path.iterdir() if one.name != MANIFEST} == PARTS


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that stand still aren't given up."""
    from xi_plugins.sources import huggingface, modelscope

    for module in (huggingface, modelscope):
        monkeypatch.setattr(module, "TIMEOUT", 100.0)


def test_files_come_at_once(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    """Each of the first three is held back until the fourth was asked for."""
    told: list[tuple[str, ModelTransfer | None]] = []
    fourth = request_of(source, NAMES[3])
    hub.faults = [Fault(where=request_of(source, name), after=fourth) for name in NAMES[:3]]
    whole(source.fetch(ref(source), tmp_path, lambda stage, share, download=None: told.append((stage, download))))
    assert hub.most_at_once <= 4
    coming = [download for stage, download in told if download is not None and f"downloading 4/6 {NAMES[3]}: " in stage]
    begun = next(download for download in coming if len(download.files) == 4)
    assert [(file.name, file.total) for file in begun.files] == [(name, 400_000) for name in NAMES[:4]]
    assert [(file.done, file.rate, file.eta) for file in begun.files[:3]] == [(0, 0, None)] * 3
    assert (begun.total, begun.files_done, begun.files_total) == (2_400_000, 0, 6)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_come_at_once_than_are_set(
    hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("XI_DOWNLOAD_WORKERS", str(workers))
    settings.cache_clear()
    hub.faults = [Fault(where=request_of(source, NAMES[0]), after=request_of(source, NAMES[workers - 1]))]
    shares: list[float] = []
    whole(source.fetch(ref(source), tmp_path, lambda stage, share, *_: shares.append(share) if share is not None else None))
    assert hub.most_at_once <= workers
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_first_error_ends_the_others_and_names_its_file(
    hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(monkeypatch)
    third = request_of(source, NAMES[2])
    hub.faults = [
        Fault(where=request_of(source, NAMES[0]), stall_after=200_000),
        Fault(where=request_of(source, NAMES[1]), stall_after=200_000),
        Fault(where=third, status=403, times=10),
    ]
    began = time.monotonic()
    with pytest.raises(ArtifactError, match=rf"{NAMES[2]}: .*refuses"):
        source.fetch(ref(source), tmp_path, quiet)
    assert time.monotonic() - began < 50, "it waits for none that stands still"
    assert ModelCache(tmp_path).models() == []
    hub.faults = []
    whole(source.fetch(ref(source), tmp_path, quiet))


def test_one_cancel_ends_all_and_what_came_is_gone_on_with(
    hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(monkeypatch)
    hub.faults = [Fault(where=request_of(source, name), stall_after=200_000) for name in NAMES[:4]]
    wanted, ended = threading.Event(), []

    def cancelled(stage: str, share: float | None, *_: object) -> None:
        if wanted.is_set():
            raise LaunchCancelled("nobody wants it")

    def fetch() -> None:
        with pytest.raises(LaunchCancelled):
            source.fetch(ref(source), tmp_path, cancelled)
        ended.append(time.monotonic())

    thread = threading.Thread(target=fetch)
    thread.start()
    parts = tmp_path / "models" / "partial"
    wait_until(lambda: sum(one.stat().st_size for one in parts.rglob("*") if one.is_file()) >= 4 * 190_000, 30, "the halves")
    began = time.monotonic()
    wanted.set()
    thread.join(30)
    assert ended[0] - began < 5, "a cancel is heard while nothing comes"
    before = {one: one.stat().st_size for one in parts.rglob("*") if one.is_file()}
    hub.resume.set()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "download"], 30, "the end of the threads")
    assert before == {one: one.stat().st_size for one in parts.rglob("*") if one.is_file()}, "nothing was written after the end"
    whole(source.fetch(ref(source), tmp_path, quiet))
    assert [hub.gets(request_of(source, name))[-1].range for name in NAMES[:4]] == ["bytes=212992-"] * 4


def test_files_of_the_same_content_come_at_once(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    same = dict.fromkeys(NAMES, b"same" * 100_000)
    hub.models[ID].files = same
    hub.faults = [Fault(where=request_of(source, NAMES[0]), after=request_of(source, NAMES[3]))]
    path = source.fetch(ref(source), tmp_path, quiet)
    assert {one.name: one.read_bytes() for one in path.iterdir() if one.name != MANIFEST} == same
    assert len(list((tmp_path / "models" / "blobs").iterdir())) == 1


def test_a_full_disk_names_the_file_that_found_it(
    hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.os, "replace", full)
        with pytest.raises(ArtifactError, match=rf"{ID}: model-0000\d-of-00006\.safetensors: the disk .* is full; what came is kept"):
            source.fetch(ref(source), tmp_path, quiet)
    whole(source.fetch(ref(source), tmp_path, quiet))


def test_what_failed_for_a_moment_doesnt_hold_up_the_others(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    told: list[str] = []
    hub.faults = [Fault(where=request_of(source, NAMES[0]), status=503, headers={"Retry-After": "1"})]
    whole(source.fetch(ref(source), tmp_path, lambda stage, share, *_: told.append(stage)))
    assert any(stage.startswith("downloading ") and "answers 503; trying again in 1 s" in stage for stage in told)
    order = [one.path for one in hub.asked]
    again = max(number for number, path in enumerate(order) if request_of(source, NAMES[0]) in path)
    assert again > max(number for number, path in enumerate(order) if request_of(source, NAMES[5]) in path)
