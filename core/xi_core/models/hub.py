"""`HubSource`: what all sources over the network have in common. It pins, resumes, retries, verifies; a subclass speaks its hub's protocol.

The files of a model come several at once (`downloading.py`); which ones, `hub_files.py` says.

A model that is complete in the cache is used without a word to the hub. What isn't complete is never seen by an engine.
"""

from __future__ import annotations

import contextlib
import email.utils
import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from xi_core.byte_size import in_words
from xi_core.config import settings
from xi_core.errors import ArtifactError
from xi_core.models.cache import CachedModel, ModelCache
from xi_core.models.cache_disk import disk_error
from xi_core.models.downloading import INTERVAL, Download, Downloads, Transient
from xi_core.models.family import SourceRef
from xi_core.models.hashing import CachedFile
from xi_core.models.hub_files import HubFile, check_cached, chosen, lacks_code, named, naming
from xi_core.models.hub_room import room_for
from xi_core.models.source import Progress, Source

log = logging.getLogger(__name__)

TRIES = 5
"""Times that the hub, or the way to it, may fail in a row. A download that gets further in between starts the count anew."""
BACKOFF, LONGEST_BACKOFF = 1.0, 30.0
LONGEST_WAIT = 300.0
"""A hub that asks for more seconds than this isn't waited for."""
CHUNK = 1024 * 1024
T = TypeVar("T")


class Listing(Struct, kw_only=True):
    """The files of a model at one commit."""

    commit: str
    files: list[HubFile]


class _Pull(Struct, kw_only=True):
    """One model that is being downloaded: where from and where to, and its files of this commit that are here already."""

    cache: ModelCache
    ref: SourceRef
    listing: Listing
    folder: Path
    have: dict[str, CachedFile]

    def hash_of(self, file: HubFile) -> str | None:
        """The SHA-256 that a file has, where that is known before it comes."""
        known = self.have.get(file.name)
        return file.sha256 or (known.sha256 if known is not None else None) or _noted(self.folder, file)


class HubSource(Source):
    """Downloads into the cache of XI_HOME. `name` is the source's."""

    name: str

    @abstractmethod
    def listing(self, ref: SourceRef) -> Listing:
        """The files of a model, pinned. Raises `Transient`, `ArtifactError` (no such model, no access)."""

    @abstractmethod
    def download(self, ref: SourceRef, listing: Listing, file: HubFile, folder: Path, download: Download) -> Path:
        """Get one file into `folder`, going on with what lies there. Answers where it is. Raises as `listing`, or `OSError` of the disk.

        Called in several threads at once, each with another file.
        """

    def fetch(self, ref: SourceRef, home: Path, progress: Progress) -> Path:
        cache = ModelCache(home)
        while True:
            with cache.used(self.name, ref.id):
                path = self._cached(cache, ref)
                if path is not None:
                    return self._verified(cache, path, ref, progress)
            with cache.held(self.name, ref.id, _waiting(cache, ref, self.name, progress)):
                if self._cached(cache, ref) is None:
                    return _artifact(self._pull(cache, ref, progress), cache, ref)  # its files were hashed when they came

    def _verified(self, cache: ModelCache, path: Path, ref: SourceRef, progress: Progress) -> Path:
        if settings().verify_models:
            names = [file.name for file in cache.manifest(path).files]
            cache.verify(path, progress, set(named(names, ref.files)) if ref.files else None)
        return _artifact(path, cache, ref)

    def pull(self, ref: SourceRef, home: Path, progress: Progress) -> Path:
        """Ask the hub what the revision is now, and get what isn't there. Raises as `fetch`; offline it is `fetch`."""
        if settings().offline:
            return self.fetch(ref, home, progress)
        cache = ModelCache(home)
        with cache.held(self.name, ref.id, lambda: progress(f"another download of {ref.id} runs", None)):
            return _artifact(self._pull(cache, ref, progress), cache, ref)

    def _cached(self, cache: ModelCache, ref: SourceRef) -> Path | None:
        """The folder of the model, if all that is wanted of it is there."""
        path = cache.find(self.name, ref.id, ref.revision)
        if path is None:
            return None
        manifest = cache.manifest(path)
        if not ref.files and not manifest.whole:
            return None
        names = [file.name for file in manifest.files]
        check_cached(names, ref)
        if ref.code and not ref.files and lacks_code(path, names):
            return None
        return path if all(named(names, (pattern,)) for pattern in ref.files) else None

    def _pull(self, cache: ModelCache, ref: SourceRef, progress: Progress) -> Path:
        if settings().offline:
            raise ArtifactError(
                f"'{ref.id}' of {self.name} is not in the cache, or not whole, and this machine is set to be offline (XI_OFFLINE or "
                f"HF_HUB_OFFLINE): unset that, or pull the model where there is a network (xi pull)"
            )
        progress(f"asking {self.name} for {ref.id}", None)
        listing = self._tried(lambda: self.listing(ref), lambda text: progress(text, None), lambda: 0)
        wanted = chosen(listing.files, ref)
        before = cache.find(self.name, ref.id, listing.commit)
        earlier = cache.manifest(before) if before is not None else None
        have = {file.name: file for file in earlier.files} if earlier is not None else {}
        pull = _Pull(cache=cache, ref=ref, listing=listing, folder=cache.partial(self.name, ref.id, listing.commit), have=have)
        got = self._got(pull, wanted, progress)
        try:
            others = [one for name, one in have.items() if name not in {file.name for file in got}]
            kept = _kept(pull, others, progress)
        except OSError as error:
            raise disk_error(cache.root, error) from error
        whole = not ref.files or (earlier is not None and earlier.whole and len(kept) == len(others))
        model = CachedModel(source=self.name, id=ref.id, revision=listing.commit, files=[*kept, *got], created=time.time(), whole=whole)
        return cache.publish(model, ref.revision)

    def _got(self, pull: _Pull, wanted: list[HubFile], progress: Progress) -> list[CachedFile]:
        """The files that are wanted, among the blobs. Nothing is asked for where the disk has no room for them."""
        downloads = Downloads(wanted, lambda file, download: self._one(pull, file, download))
        with room_for(pull.ref.id, pull.cache.root, pull.folder, _absent(pull, wanted), lambda: downloads.fetched):
            return downloads.run(progress, settings().download_workers)

    def _one(self, pull: _Pull, file: HubFile, download: Download) -> CachedFile:
        """One file among the blobs. Errors name it."""
        try:
            return self._get(pull, file, download)
        except OSError as error:
            raise naming(disk_error(pull.cache.root, error), pull.ref, file) from error
        except ArtifactError as error:
            raise naming(error, pull.ref, file) from error

    def _get(self, pull: _Pull, file: HubFile, download: Download) -> CachedFile:
        """One file among the blobs. One that came damaged is got once more."""
        cache, ref, folder, known = pull.cache, pull.ref, pull.folder, pull.hash_of(file)
        if known is not None and cache.reuse(known, file.size, folder, download.hashed):
            return CachedFile(name=file.name, size=file.size, sha256=known)
        for last in (False, True):
            path = self._tried(lambda: self.download(ref, pull.listing, file, folder, download), download.say, lambda: download.furthest)
            try:
                sha256, size = _taken(cache, path, folder, file, download)
            except ArtifactError as error:
                if isinstance(error.__cause__, OSError):  # the disk's fault: it would be so again
                    raise
                if last:
                    raise ArtifactError(
                        f"{ref.id}: {file.name} came damaged twice in a row: {error.message}. The cache is as it was; "
                        f"launch again later (the model may just have changed at {self.name})"
                    ) from None
                log.warning("%s: %s came damaged: %s; it is downloaded again", ref.id, file.name, error.message)
                download.furthest = 0  # it comes anew: each byte of it is progress once more
                continue
            _note(folder, file, sha256)
            return CachedFile(name=file.name, size=size, sha256=sha256)
        raise AssertionError("unreachable")

    def _tried(self, ask: Callable[[], T], say: Callable[[str], None], reached: Callable[[], int]) -> T:
        """What `ask` answers, asked again while it fails for a moment. `reached` tells how far it got; `say` may raise."""
        number, before = 0, reached()
        while True:
            try:
                return ask()
            except Transient as error:
                now = reached()
                number, before = (1 if now > before else number + 1), now
                if number >= TRIES:
                    raise ArtifactError(
                        f"{self.name} failed {TRIES} times in a row: {error}. "
                        f"What came is kept, and the cache is as it was; launch again later"
                    ) from error
                if error.wait is not None and error.wait > LONGEST_WAIT:
                    raise ArtifactError(
                        f"{self.name}: {error}; it asks to come back in {error.wait:.0f} s. Launch again then: what came is kept"
                    ) from error
                wait = error.wait if error.wait is not None else min(LONGEST_BACKOFF, BACKOFF * 2 ** (number - 1))
                _wait(f"{self.name}: {error}; trying again in", wait, say)


def seconds_of(retry_after: str | None) -> float | None:
    """Seconds that a `Retry-After` asks for: a number, or a date (RFC 9110, 10.2.3)."""
    if not retry_after:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None


def _artifact(path: Path, cache: ModelCache, ref: SourceRef) -> Path:
    """What an engine loads: the folder, or the first of the files that the reference names where that is a GGUF file."""
    if ref.files and ref.files[0].endswith(".gguf"):
        return path / sorted(named([file.name for file in cache.manifest(path).files], (ref.files[0],)))[0]
    return path


def _waiting(cache: ModelCache, ref: SourceRef, source: str, progress: Progress) -> Callable[[], None]:
    """What a launch tells while another downloads its model. A share, which gives it more time, only where bytes have come."""
    before: int | None = None

    def tell() -> None:
        nonlocal before
        there = cache.came(source, ref.id)
        grown, before = before is not None and there > before, there
        # Its files aren't known here, nor how much of them this is.
        progress(f"another launch downloads {ref.id}: {in_words(there)} there", 0.0 if grown else None)

    return tell


def _kept(pull: _Pull, files: list[CachedFile], progress: Progress) -> list[CachedFile]:
    """Those of the files that are undamaged. They are kept for this download. `progress` may raise to end it."""
    total, done, told_at = sum(file.size for file in files), 0, -INTERVAL

    def each(count: int) -> None:
        nonlocal done, told_at
        done += count
        if (now := time.monotonic()) - told_at >= INTERVAL:
            told_at = now
            progress("verifying the files", done / total if total else None)

    return [file for file in files if pull.cache.reuse(file.sha256, file.size, pull.folder, each)]


def _absent(pull: _Pull, files: list[HubFile]) -> list[HubFile]:
    """Those that have to come, as far as can be told without reading what is there; the first of several that have the same content."""
    by_content = {pull.hash_of(file) or file.name: file for file in reversed(files)}
    return [file for file in by_content.values() if not ((known := pull.hash_of(file)) and pull.cache.has(known, file.size))]


def _taken(cache: ModelCache, path: Path, folder: Path, file: HubFile, download: Download) -> tuple[str, int]:
    size = path.stat().st_size
    if size != file.size:
        download.check()  # after the end it may be another launch's
        path.unlink()
        raise ArtifactError(f"it has {size} bytes, and the source says {file.size}")
    return cache.take(path, folder, file.sha256, file.git_sha1, download.hashed)


def _note(folder: Path, file: HubFile, sha256: str) -> None:
    """Remember the hash of a file that the hub tells none of, so that a download that is gone on with doesn't get it again."""
    if file.git_sha1 is not None:
        (folder / f"{file.git_sha1}.sha256").write_text(sha256)


def _noted(folder: Path, file: HubFile) -> str | None:
    with contextlib.suppress(OSError):
        # Empty where the disk was full when it was noted.
        return (folder / f"{file.git_sha1}.sha256").read_text() or None if file.git_sha1 is not None else None
    return None


def _wait(text: str, seconds: float, say: Callable[[str], None]) -> None:
    """Wait. `say` raises where nobody wants the model any more."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        say(f"{text} {left:.0f} s")
        time.sleep(min(left, INTERVAL))
