"""The cache of downloaded models: whole or absent, shared blobs, verification, removal."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xi_core.errors import ArtifactError, Conflict, LaunchCancelled, NotFound
from xi_core.models import cache as cache_module
from xi_core.models import hashing
from xi_core.models.cache import KEPT, MANIFEST, CachedModel, ModelCache
from xi_core.models.hashing import CachedFile, Stopped, checked_name, git_sha1_of, verify_files

COMMIT, LATER = "a" * 40, "b" * 40


def quiet(stage: str, share: float | None) -> None:
    """Progress that nobody looks at."""


def stored(cache: ModelCache, id: str, commit: str = COMMIT, **files: bytes) -> Path:
    """A model of these files, put into the cache as a download does."""
    folder = cache.partial("hub", id, commit)
    kept = []
    for name, body in files.items():
        part = folder / f"part-{name}"
        part.write_bytes(body)
        sha256, size = cache.take(part, folder, hashlib.sha256(body).hexdigest())
        kept.append(CachedFile(name=f"{name}.bin", size=size, sha256=sha256))
    return cache.publish(CachedModel(source="hub", id=id, revision=commit, files=kept, created=time.time()), None)


def blobs(home: Path) -> set[str]:
    return {path.name for path in (home / "models" / "blobs").glob("*")}


def test_a_model_is_found_by_its_commit_and_by_the_name_that_was_asked_for(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    assert cache.find("hub", "a/b", None) is None
    path = stored(cache, "a/b", one=b"1")
    assert cache.find("hub", "a/b", None) == cache.find("hub", "a/b", COMMIT) == path
    assert cache.find("hub", "a/b", LATER) is None
    assert cache.find("other", "a/b", None) is None
    later = stored(cache, "a/b", LATER, one=b"2")
    assert cache.find("hub", "a/b", None) == later
    assert cache.find("hub", "a/b", COMMIT) == path


def test_a_file_of_two_models_is_kept_once_and_as_long_as_one_needs_it(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    stored(cache, "a/first", shared=b"same" * 100, own=b"first")
    second = stored(cache, "a/second", shared=b"same" * 100)
    assert len(blobs(tmp_path)) == 2
    assert cache.remove("hub", "a/first") == len(b"first")
    assert (second / "shared.bin").read_bytes() == b"same" * 100
    assert cache.remove("hub", "a/second") == 400
    assert blobs(tmp_path) == set()
    assert cache.models() == []


def test_one_commit_can_be_removed(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    old, new = stored(cache, "a/b", one=b"1"), stored(cache, "a/b", LATER, one=b"22")
    assert cache.remove("hub", "a/b", COMMIT) == 1
    assert not old.exists()
    assert cache.find("hub", "a/b", None) == new


def test_what_isnt_there_cant_be_removed(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="'a/b' of source hub is not in the cache"):
        ModelCache(tmp_path).remove("hub", "a/b")


def test_a_removal_leaves_what_a_download_has_already(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    stored(cache, "a/first", shared=b"same")
    folder = cache.partial("hub", "a/second", COMMIT)
    sha256 = hashlib.sha256(b"same").hexdigest()
    assert cache.reuse(sha256, 4, folder)
    assert cache.remove("hub", "a/first") == 0
    assert cache.reuse(sha256, 4, folder)


def test_a_model_that_is_being_downloaded_isnt_removed(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    stored(cache, "a/b", one=b"1")
    with cache.held("hub", "a/b", lambda: None), pytest.raises(Conflict, match="is being downloaded"):
        ModelCache(tmp_path).remove("hub", "a/b")
    assert cache.find("hub", "a/b", None) is not None


def test_a_model_that_is_being_verified_isnt_removed(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    path = stored(cache, "a/b", one=b"1")
    with cache.used("hub", "a/b"), ModelCache(tmp_path).used("hub", "a/b"):
        with pytest.raises(Conflict, match="'a/b' is being verified for a launch"):
            ModelCache(tmp_path).remove("hub", "a/b")
        with ModelCache(tmp_path).held("hub", "a/b", lambda: pytest.fail("a download waits for it")):
            pass
    assert path.is_dir()
    assert cache.remove("hub", "a/b") == 1


def test_a_cache_that_cant_be_written_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "locks").write_text("a file, where a folder should be")
    with ModelCache(tmp_path).used("hub", "a/b"):
        pass


def test_what_was_downloaded_in_part_is_removed_too(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    folder = cache.partial("hub", "a/b", COMMIT)
    (folder / "part").write_bytes(b"123")
    assert cache.remove("hub", "a/b") == 3
    assert not folder.exists()


def test_all_that_takes_room_is_told_and_can_be_removed(tmp_path: Path) -> None:
    """Complete models, damaged ones, what came in part, and what a killed process left."""
    cache = ModelCache(tmp_path)
    whole = stored(cache, "a/whole", one=b"1")
    (stored(cache, "a/damaged", two=b"22") / MANIFEST).write_bytes(b"{")
    (cache.partial("hub", "a/part", LATER) / "part").write_bytes(b"333")
    left = whole.parent / ".new-killed"
    left.mkdir()
    (left / "one.bin").hardlink_to(whole / "one.bin")
    (left / MANIFEST).write_bytes((whole / MANIFEST).read_bytes())
    assert [model.id for model in cache.models()] == ["a/whole"]
    ids = [("a/damaged", COMMIT), ("a/part", LATER), ("a/whole", COMMIT)]
    assert [(one.id, one.revision) for one in cache.stored()] == ids
    assert sum(cache.remove(one.source, one.id, one.revision) for one in cache.stored()) == 6
    assert cache.stored() == []
    assert [one for one in tmp_path.rglob("*") if one.is_file() and one.parent.name != "locks"] == []


def test_a_removal_leaves_what_a_download_has_where_links_are_symbolic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(cache_module.os, "link", unknown)
    cache = ModelCache(tmp_path)
    stored(cache, "a/first", own=b"first")
    folder = cache.partial("hub", "a/second", COMMIT)
    (folder / "part").write_bytes(b"second")
    sha256, _ = cache.take(folder / "part", folder)
    assert cache.remove("hub", "a/first") == 5
    assert blobs(tmp_path) == {sha256}


@pytest.mark.parametrize("symbolic", [False, True])
def test_a_removal_leaves_a_file_that_just_comes_among_the_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbolic: bool) -> None:
    """At no moment has a blob neither a second link nor its download's word that it is wanted."""

    def unknown(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    if symbolic:
        monkeypatch.setattr(cache_module.os, "link", unknown)
    cache, replace = ModelCache(tmp_path), os.replace
    stored(cache, "a/first", own=b"first")
    folder = cache.partial("hub", "a/second", COMMIT)
    (folder / "part").write_bytes(b"second")

    def at_once(file: Path, blob: Path) -> None:
        replace(file, blob)
        assert ModelCache(tmp_path).remove("hub", "a/first") == 5

    monkeypatch.setattr(cache_module.os, "replace", at_once)
    sha256, _ = cache.take(folder / "part", folder)
    assert blobs(tmp_path) == {sha256}
    assert (folder / KEPT / sha256).read_bytes() == b"second"
    assert (folder / KEPT / sha256).is_symlink() is symbolic


def test_only_one_downloads_a_model_at_a_time(tmp_path: Path) -> None:
    waited = threading.Event()
    order: list[str] = []

    def second() -> None:
        with ModelCache(tmp_path).held("hub", "a/b", waited.set):
            order.append("second")

    with ModelCache(tmp_path).held("hub", "a/b", lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_a_wait_can_be_ended(tmp_path: Path) -> None:
    def cancelled() -> None:
        raise LaunchCancelled("nobody wants it")

    cache = ModelCache(tmp_path)
    with cache.held("hub", "a/b", lambda: None), pytest.raises(LaunchCancelled), ModelCache(tmp_path).held("hub", "a/b", cancelled):
        pass


@pytest.mark.parametrize("harm", ["flip", "cut", "lose"])
def test_a_damaged_file_is_named(tmp_path: Path, harm: str) -> None:
    cache = ModelCache(tmp_path)
    path = stored(cache, "a/b", good=b"g" * 3_000_000, bad=b"b" * 3_000_000)
    cache.verify(path, quiet)
    file = path / "bad.bin"
    file.chmod(0o644)
    if harm == "flip":
        with open(file, "r+b") as out:
            out.seek(2_999_999)
            out.write(b"c")
    elif harm == "cut":
        file.write_bytes(b"b")
    else:
        file.unlink()
    with pytest.raises(ArtifactError, match=r"bad\.bin is damaged.*xi remove-cache -n a/b"):
        cache.verify(path, quiet)
    cache.verify(path, quiet, {"good.bin"})


def test_a_damaged_blob_is_never_used_again(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    path = stored(cache, "a/b", one=b"1234")
    (path / "one.bin").chmod(0o644)
    (path / "one.bin").write_bytes(b"1235")
    assert not cache.reuse(hashlib.sha256(b"1234").hexdigest(), 4, cache.partial("hub", "a/c", COMMIT))


def test_verifying_tells_how_far_it_is_and_can_be_ended(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    path = stored(cache, "a/b", one=b"1" * 2_000_000, two=b"2" * 1_000_000)
    told: list[float | None] = []
    cache.verify(path, lambda stage, share: told.append(share))
    assert told[-1] == 1.0

    def cancelled(stage: str, share: float | None) -> None:
        raise LaunchCancelled("nobody wants it")

    with pytest.raises(LaunchCancelled):
        cache.verify(path, cancelled)


def test_verifying_tells_no_share_while_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share gives a launch more time. A disk that doesn't answer has it end by its deadline."""
    cache = ModelCache(tmp_path)
    path = stored(cache, "a/b", one=b"1" * 100)
    told: list[float | None] = []
    answers, hashed = threading.Event(), hashing.sha256_of

    def slow(path: Path, each: Callable[[int], None]) -> str:
        each(50)
        assert answers.wait(30)
        return hashed(path)

    def progress(stage: str, share: float | None) -> None:
        told.append(share)
        if len(told) == 4:
            answers.set()

    monkeypatch.setattr(hashing, "sha256_of", slow)
    cache.verify(path, progress)
    assert len(told) >= 4
    assert [share for share in told if share is not None] == [0.5]


def test_a_model_that_comes_again_is_there_while_the_old_one_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch may be reading its files, however long it takes to delete them."""
    cache, rmtree = ModelCache(tmp_path), shutil.rmtree
    path = stored(cache, "a/b", one=b"1")
    there: list[bytes] = []

    def slow(which: Path, ignore_errors: bool = False) -> None:
        there.append((path / "one.bin").read_bytes())
        rmtree(which, ignore_errors)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.shutil, "rmtree", slow)
        assert stored(cache, "a/b", one=b"22") == path
    assert set(there) == {b"22"}
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []
    assert cache.remove("hub", "a/b") == 3


def test_the_cache_is_left_as_it_was_when_publishing_fails(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    path = stored(cache, "a/b", one=b"1")
    missing = CachedFile(name="x", size=1, sha256="0" * 64)
    with pytest.raises(ArtifactError):
        cache.publish(CachedModel(source="hub", id="a/b", revision=COMMIT, files=[missing], created=0.0), None)
    assert (path / "one.bin").read_bytes() == b"1"
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".new")] == []


def test_a_manifest_that_cant_be_read_is_said_and_harms_no_other(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    path = stored(cache, "a/b", one=b"1")
    stored(cache, "a/c", one=b"1")
    (path / ".xi-manifest.json").write_bytes(b"{")
    with pytest.raises(ArtifactError, match=r"manifest of .* can't be read"):
        cache.manifest(path)
    assert [model.id for model in cache.models()] == ["a/c"]


@pytest.mark.parametrize("name", ["", ".", "/", "../x", "a/../../x", "/etc/x", "a\\b", "a\0b", ".xi-manifest.json", ".kept/x"])
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="outside the model's folder"):
        checked_name(name)


@pytest.mark.parametrize("id", ["", "..", "a/..", "../a", "a/b/c", "/a", "a b", "a\n", "-a", "a" * 300])
def test_ids_that_are_none_are_refused(tmp_path: Path, id: str) -> None:
    with pytest.raises(ArtifactError, match="no id of a model"):
        ModelCache(tmp_path).find("hub", id, None)


@pytest.mark.parametrize("revision", ["../x", "a b", "a/../b", "x" * 300])
def test_revisions_that_are_none_are_refused(tmp_path: Path, revision: str) -> None:
    with pytest.raises(ArtifactError, match="is no revision"):
        ModelCache(tmp_path).find("hub", "a/b", revision)


def test_a_commit_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="which is no commit"):
        ModelCache(tmp_path).partial("hub", "a/b", "../../x")


def test_gits_hash(tmp_path: Path) -> None:
    """The well-known ids of git's empty blob and of `hello`."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert git_sha1_of(tmp_path / "empty") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_sha1_of(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_file_with_other_content_than_expected_isnt_taken(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    folder = cache.partial("hub", "a/b", COMMIT)
    part = folder / "part"
    part.write_bytes(b"x")
    with pytest.raises(ArtifactError, match="git hash"):
        cache.take(part, folder, None, "0" * 40)
    assert not part.exists()
    assert blobs(tmp_path) == set()


@pytest.mark.parametrize("right", [True, False])
def test_a_file_that_was_hashed_too_late_is_left_alone(tmp_path: Path, right: bool) -> None:
    """Its download has ended meanwhile, and another may go on with the file."""
    cache = ModelCache(tmp_path)
    folder = cache.partial("hub", "a/b", COMMIT)
    part = folder / "part"
    part.write_bytes(b"x" * 100)
    hashed = 0

    def each(count: int) -> None:
        nonlocal hashed
        hashed += count
        if not count:
            raise Stopped

    with pytest.raises(Stopped):
        cache.take(part, folder, None, None if right else "0" * 40, each)
    assert hashed == 100
    assert part.read_bytes() == b"x" * 100
    assert blobs(tmp_path) == set()


def test_a_file_of_the_same_content_waits_while_another_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To link a file in whose place another is just put is an error on Linux: it has no name any more."""
    cache = ModelCache(tmp_path)
    folder = cache.partial("hub", "a/b", COMMIT)
    alone: list[bool] = []
    for name in ("replace", "link"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *paths, call=call: (alone.append(cache._linking.locked()), call(*paths)))
    (folder / "part").write_bytes(b"same")
    cache.take(folder / "part", folder)
    assert alone == [True, True]


def test_nothing_to_verify_is_right(tmp_path: Path) -> None:
    assert verify_files(tmp_path, [], lambda done, total: None) is None
