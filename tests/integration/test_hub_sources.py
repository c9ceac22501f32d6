"""Sources over the network, against a stand-in for the hubs on this machine: downloads, and all that can go wrong with them."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from xi_core.config import settings
from xi_core.errors import ArtifactError, Conflict, LaunchCancelled
from xi_core.models import cache as cache_module
from xi_core.models.cache import MANIFEST, ModelCache
from xi_core.models.family import SourceRef
from xi_core.models.hub import HubSource
from xi_core.testing.hub_standin import Fault, HubModel, HubStandIn
from xi_core.testing.waiting import wait_until

pytest.importorskip("huggingface_hub")

from xi_plugins.sources import huggingface

ID = "people/small-model"
WEIGHTS = random.Random(7).randbytes(3_000_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": random.Random(8).randbytes(5000),
    "pytorch_model.bin": b"never downloaded",
    "README.md": b"nor this",
}
WANTED = {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture
def hub(model_hub: HubStandIn) -> HubStandIn:
    model_hub.models[ID] = HubModel(files=dict(FILES))
    return model_hub


def weights_of(source: HubSource) -> str:
    """In the path by which the weights are asked for."""
    return f"/storage/{ID}/model.safetensors" if source.name == "huggingface" else "FilePath=model.safetensors"


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def ref_of(source: HubSource, id: str = ID, **more: object) -> SourceRef:
    return SourceRef(source=source.name, id=id, **more)  # type: ignore[arg-type]


def whole(path: Path) -> None:
    """The model is there, right and complete."""
    assert {one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()} == {*WANTED, MANIFEST}
    for name in WANTED:
        assert (path / name).read_bytes() == FILES[name]


def unharmed(home: Path) -> None:
    """Nothing that an engine could take for a model."""
    assert ModelCache(home).models() == []
    for blob in (home / "models" / "blobs").glob("*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def test_a_model_is_downloaded_whole_and_pickles_and_pages_are_left(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    path = source.fetch(ref_of(source), tmp_path, lambda stage, share, *_: told.append((stage, share)))
    whole(path)
    assert not hub.gets("pytorch_model.bin")
    assert not hub.gets("README.md")
    shares = [share for _, share in told if share is not None]
    assert shares == sorted(shares)
    assert any("downloading 2/3 model.safetensors" in stage and "/s" in stage for stage, _ in told)
    model = ModelCache(tmp_path).models()[0]
    assert (model.id, model.size) == (ID, sum(len(FILES[name]) for name in WANTED))


def test_a_model_that_is_there_makes_no_call(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    source.fetch(ref_of(source), tmp_path, quiet)
    hub.stop()
    count = len(hub.asked)
    whole(source.fetch(ref_of(source), tmp_path, quiet))
    assert len(hub.asked) == count


def test_a_download_goes_on_after_a_cut(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    hub.faults = [Fault(where=weights_of(source), cut_after=1_000_000, times=2)]
    whole(source.fetch(ref_of(source), tmp_path, quiet))
    asked = hub.gets(weights_of(source))
    assert len(asked) == 3
    assert asked[0].range == ""
    begins = [int(one.range.removeprefix("bytes=").removesuffix("-")) for one in asked[1:]]
    assert 0 < begins[0] < begins[1] < len(WEIGHTS)


def test_a_download_that_was_cancelled_is_gone_on_with(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    def cancelled(stage: str, share: float | None, *_: object) -> None:
        if "trying again" in stage:
            raise LaunchCancelled("nobody wants it")

    hub.faults = [Fault(where=weights_of(source), stall_after=2_000_000)]
    with pytest.raises(LaunchCancelled):
        source.fetch(ref_of(source), tmp_path, cancelled)
    unharmed(tmp_path)
    whole(source.fetch(ref_of(source), tmp_path, quiet))
    assert int(hub.gets(weights_of(source))[-1].range.removeprefix("bytes=").removesuffix("-")) >= 1_000_000
    assert len([one for one in hub.gets("tokenizer.json") if "repo/files" not in one.path]) <= 2, "what was whole wasn't got again"


@pytest.mark.parametrize("fault", [{"shorten": 1000}, {"flip": 12345}], ids=["truncated", "flipped"])
def test_a_damaged_file_is_refused_and_a_retry_works(hub: HubStandIn, source: HubSource, tmp_path: Path, fault: dict[str, int]) -> None:
    hub.faults = [Fault(where=weights_of(source), times=100, **fault)]  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        source.fetch(ref_of(source), tmp_path, quiet)
    unharmed(tmp_path)
    hub.faults = []
    whole(source.fetch(ref_of(source), tmp_path, quiet))


def test_one_flipped_byte_is_downloaded_again_at_once(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    hub.faults = [Fault(where=weights_of(source), flip=5)]
    whole(source.fetch(ref_of(source), tmp_path, quiet))
    assert len(hub.gets(weights_of(source))) == 2


def test_a_small_file_is_checked_by_gits_hash(hub: HubStandIn, tmp_path: Path) -> None:
    hub.faults = [Fault(where="/config.json", flip=3, times=2)]
    source = huggingface.HuggingFaceSource()
    with pytest.raises(ArtifactError, match=r"config\.json came damaged twice.*git hash"):
        source.fetch(ref_of(source), tmp_path, quiet)
    unharmed(tmp_path)
    whole(source.fetch(ref_of(source), tmp_path, quiet))


def test_access_is_asked_for_with_what_to_do(hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[source.name]
    hub.models[ID].token = "secret-1"
    with pytest.raises(ArtifactError, match=variable):
        source.fetch(ref_of(source), tmp_path, quiet)
    hub.models[ID].gated = True
    with pytest.raises(ArtifactError, match="licence"):
        source.fetch(ref_of(source), tmp_path, quiet)
    monkeypatch.setenv(variable, "secret-1")
    whole(source.fetch(ref_of(source), tmp_path, quiet))
    elsewhere = [one for one in hub.asked if one.host.startswith("localhost")]
    assert all(one.authorization == "" for one in elsewhere), "the token went to another host"


def test_what_isnt_there_is_said(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'people/nothing'.*token"):
        source.fetch(ref_of(source, "people/nothing"), tmp_path, quiet)
    hub.faults = [Fault(where="models/", status=404, headers={"X-Error-Code": "RevisionNotFound"})]
    with pytest.raises(ArtifactError, match=r"revision 'v9'"):
        source.fetch(ref_of(source, revision="v9"), tmp_path, quiet)
    with pytest.raises(ArtifactError, match=r"has no file other\.gguf"):
        source.fetch(ref_of(source, files=("other.gguf",)), tmp_path, quiet)
    unharmed(tmp_path)


def test_a_hub_that_is_busy_is_waited_for_as_long_as_it_asks(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    told: list[str] = []
    hub.faults = [Fault(where="models/", status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    whole(source.fetch(ref_of(source), tmp_path, lambda stage, share, *_: told.append(stage)))
    assert time.monotonic() - began >= 1.0
    assert any("429" in stage and "trying again in 1 s" in stage for stage in told)


def test_a_hub_that_asks_for_an_hour_isnt_waited_for(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    hub.faults = [Fault(where="models/", status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(ArtifactError, match="3600 s"):
        source.fetch(ref_of(source), tmp_path, quiet)


def test_a_failing_hub_is_tried_again_and_then_given_up(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    hub.faults = [Fault(where="models/", status=503, times=2), Fault(where=weights_of(source), status=500, times=2)]
    whole(source.fetch(ref_of(source), tmp_path / "a", quiet))
    hub.faults = [Fault(where="", status=502, times=1000)]
    with pytest.raises(ArtifactError, match=r"5 times in a row: the hub answers 502"):
        source.fetch(ref_of(source), tmp_path / "b", quiet)
    unharmed(tmp_path / "b")


def test_a_stall_is_noticed_and_the_download_goes_on(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    hub.faults = [Fault(where=weights_of(source), stall_after=500_000)]
    whole(source.fetch(ref_of(source), tmp_path, quiet))
    assert len(hub.gets(weights_of(source))) == 2


def test_no_hub_at_all(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    hub.stop()
    with pytest.raises(ArtifactError, match="no answer from http"):
        source.fetch(ref_of(source), tmp_path, quiet)
    unharmed(tmp_path)


def test_a_model_that_changes_between_its_files_is_never_mixed(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    if source.name == "huggingface":
        hub.faults = [Fault(where="/resolve/", commit="f" * 40)]
        with pytest.raises(ArtifactError, match="of commit ffff"):
            source.fetch(ref_of(source), tmp_path, quiet)
    else:
        hub.faults = [Fault(where="FilePath=model.safetensors", flip=0, times=2)]  # other content than was listed
        with pytest.raises(ArtifactError, match="may just have changed"):
            source.fetch(ref_of(source), tmp_path, quiet)
    unharmed(tmp_path)
    whole(source.fetch(ref_of(source), tmp_path, quiet))


def test_pull_takes_up_a_new_revision_and_launches_keep_what_they_have(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    old = source.fetch(ref_of(source), tmp_path, quiet)
    hub.models[ID].revision = 1
    hub.models[ID].files["config.json"] = b'{"model_type": "llama", "new": true}'
    assert source.fetch(ref_of(source), tmp_path, quiet) == old
    before = len(hub.gets(weights_of(source)))
    new = source.pull(ref_of(source), tmp_path, quiet)
    assert new != old
    assert len(hub.gets(weights_of(source))) == before, "the weights are the same: they were not to be downloaded again"
    assert source.fetch(ref_of(source), tmp_path, quiet) == new


def test_two_launches_share_one_download(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    found: list[Path] = []
    told: list[str] = []
    hub.faults = [Fault(where=weights_of(source), stall_after=100_000)]
    first = threading.Thread(target=lambda: found.append(source.fetch(ref_of(source), tmp_path, quiet)))
    first.start()
    assert hub.stalled.wait(30)
    second = threading.Thread(
        target=lambda: found.append(source.fetch(ref_of(source), tmp_path, lambda stage, share, *_: told.append(stage)))
    )
    second.start()
    wait_until(lambda: any("another launch downloads" in stage for stage in told), 30)
    hub.resume.set()
    first.join(30)
    second.join(30)
    assert len(found) == 2
    assert found[0] == found[1]
    whole(found[0])
    assert len(hub.gets("/api/models/" if source.name == "huggingface" else "repo/files")) == 1


def test_a_flipped_byte_in_the_cache_refuses_the_launch(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    path = source.fetch(ref_of(source), tmp_path, quiet)
    file = path / "model.safetensors"
    file.chmod(0o644)
    with open(file, "r+b") as out:
        out.seek(1_234_567)
        byte = out.read(1)
        out.seek(1_234_567)
        out.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ArtifactError, match=r"model\.safetensors is damaged: its SHA-256"):
        source.fetch(ref_of(source), tmp_path, quiet)
    ModelCache(tmp_path).remove(source.name, ID)
    whole(source.fetch(ref_of(source), tmp_path, quiet))


def test_a_model_isnt_removed_while_a_launch_verifies_it(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    source.fetch(ref_of(source), tmp_path, quiet)
    refused: list[str] = []

    def removing(stage: str, share: float | None, *_: object) -> None:
        with pytest.raises(Conflict) as raised:
            ModelCache(tmp_path).remove(source.name, ID)
        refused.append(f"{stage}: {raised.value.message}")

    whole(source.fetch(ref_of(source), tmp_path, removing))
    assert all(one.startswith("verifying the files") and "is being verified" in one for one in refused), refused
    assert refused


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/outside.safetensors", "a/../../outside.safetensors", "..\\outside.safetensors"]
)
def test_names_that_lead_out_are_refused(hub: HubStandIn, source: HubSource, tmp_path: Path, name: str) -> None:
    hub.models[ID].files[name] = WEIGHTS
    home = tmp_path / "home"
    with pytest.raises(ArtifactError, match="outside the model's folder"):
        source.fetch(ref_of(source), home, quiet)
    assert not list(tmp_path.rglob("outside*"))
    for id in ("../../etc", "people/../x", "people", "a/b/c", "people/x\n"):
        with pytest.raises(ArtifactError):
            source.fetch(ref_of(source, id), home, quiet)
    unharmed(home)


def test_links_in_the_repository_are_files_like_others(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    """A symbolic link in a git repository is a small file that holds a path: it is written as such, and never followed."""
    hub.models[ID].files["chat.json"] = b"../../../../etc/passwd"
    path = source.fetch(ref_of(source), tmp_path, quiet)
    assert (path / "chat.json").read_bytes() == b"../../../../etc/passwd"
    assert not (path / "chat.json").is_symlink()


def in_a_process(source: HubSource, home: Path, before: str) -> str:
    """The message with which a fetch fails in a process of its own, after the statements of `before`."""
    script = f"""
        import sys
        from pathlib import Path
        from xi_plugins.sources.{source.name} import {type(source).__name__} as Source
        from xi_core.models.family import SourceRef
        from xi_core.errors import ArtifactError
        import huggingface_hub.errors, huggingface_hub.hf_api
        {before}
        try:
            Source().fetch(SourceRef(source="{source.name}", id="{ID}"), Path(sys.argv[1]), lambda *_: None)
        except ArtifactError as error:
            print(error.message)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    """In a process of its own, which may write no file of more than 1 MB: the same way as a full disk."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    told = in_a_process(source, tmp_path, f"{limit}; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))")
    assert "allows no file as large as this" in told
    assert "XI_HOME" in told
    unharmed(tmp_path)
    whole(source.fetch(ref_of(source), tmp_path, quiet))


def test_a_disk_that_is_full_is_said_so(hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.os, "replace", full)
        with pytest.raises(ArtifactError, match="is full; what came is kept"):
            source.fetch(ref_of(source), tmp_path, quiet)
    unharmed(tmp_path)
    whole(source.fetch(ref_of(source), tmp_path, quiet))


def test_no_permission(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    """In a process of its own, which isn't root."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    give_up = "import os; os.geteuid() or os.setuid(65534)"
    told = in_a_process(source, home, give_up)
    assert "can't be written" in told
    assert "XI_HOME" in told
    unharmed(home)
    home.chmod(0o755)
    whole(source.fetch(ref_of(source), home, quiet))


def test_a_home_that_is_a_file(hub: HubStandIn, source: HubSource, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ArtifactError, match="home"):
        source.fetch(ref_of(source), tmp_path / "home", quiet)


def test_offline_asks_nobody(hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XI_OFFLINE", "1")
    settings.cache_clear()
    with pytest.raises(ArtifactError, match="XI_OFFLINE"):
        source.fetch(ref_of(source), tmp_path, quiet)
    assert hub.asked == []


def test_offline_a_pull_takes_what_is_there(hub: HubStandIn, source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, count = source.fetch(ref_of(source), tmp_path, quiet), len(hub.asked)
    monkeypatch.setenv("XI_OFFLINE", "1")
    settings.cache_clear()
    assert source.pull(ref_of(source), tmp_path, quiet) == path
    assert len(hub.asked) == count
    (path / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
        source.pull(ref_of(source), tmp_path, quiet)


def test_the_stand_in_speaks_to_the_real_client(hub: HubStandIn, tmp_path: Path) -> None:
    """huggingface_hub's own whole download takes the stand-in for the hub, so that what is tested here is its protocol."""
    script = "import sys, huggingface_hub as h; print(h.hf_hub_download(sys.argv[1], 'model.safetensors', local_dir=sys.argv[2]))"
    done = subprocess.run([sys.executable, "-c", script, ID, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
