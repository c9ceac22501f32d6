"""`HubSource`: what all sources over the network have in common. It pins, resumes, retries, verifies; a subclass speaks its hub's protocol.

A model that is complete in the cache is used without a word to the hub. What isn't complete is never seen by an engine.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import logging
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from xi_core.config import settings
from xi_core.errors import ArtifactError
from xi_core.models.cache import CachedModel, ModelCache, disk_error
from xi_core.models.family import SourceRef
from xi_core.models.hashing import CachedFile, checked_name
from xi_core.models.source import Progress, Source

log = logging.getLogger(__name__)

TRIES = 5
"""Times that the hub, or the way to it, may fail in a row. A download that gets further in between starts the count anew."""
BACKOFF, LONGEST_BACKOFF = 1.0, 30.0
LONGEST_WAIT = 300.0
"""A hub that asks for more seconds than this isn't waited for."""
INTERVAL = 0.2
"""Seconds between words on progress."""
CHUNK = 1024 * 1024
T = TypeVar("T")
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
WEIGHTS = ("*.safetensors", "*.gguf")
UNWANTED = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite", "*.mlmodel", "*.py", "*.pkl",
    "*.md", ".gitattributes", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.pdf", "original/*", "onnx/*", "openvino/*", "coreml/*", "figures/*",
)  # fmt: skip
"""Files that no engine is to load: pickles and code above all."""


class HubFile(Struct, kw_only=True, frozen=True):
    """A file as the hub lists it. `sha256` is None where the hub doesn't tell."""

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None
    """Git's own hash of the content, where the hub has no other."""


class Listing(Struct, kw_only=True):
    """The files of a model at one commit."""

    commit: str
    files: list[HubFile]


class Transient(Exception):
    """The hub, or the way to it, fails at the moment. `wait`: seconds that it asks for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Download:
    """Progress of one model's download, told in words: file, bytes, rate, time left."""

    def __init__(self, files: list[HubFile], progress: Progress) -> None:
        self._total = sum(file.size for file in files)
        self._count = len(files)
        self._progress = progress
        self._done, self._before, self._furthest = 0, 0, 0
        self._number, self._name = 0, ""
        self._began = self._told_at = time.monotonic()
        self._fetched = 0

    def begin(self, file: HubFile) -> None:
        """The next file."""
        self._number, self._name, self._done = self._number + 1, file.name, 0
        self._tell()

    @property
    def furthest(self) -> int:
        """As far as it ever got, in bytes: what is got again doesn't count."""
        return self._furthest

    def resume(self, done: int) -> None:
        """So many bytes of the file are there already. Raises what `progress` raises."""
        self._done = done
        self._tell()

    def came(self, fresh: int) -> None:
        """So many bytes more. Raises what `progress` raises."""
        self._done, self._fetched = self._done + fresh, self._fetched + fresh
        self._furthest = max(self._furthest, self._before + self._done)
        if time.monotonic() - self._told_at >= INTERVAL:
            self._tell()

    def end(self, file: HubFile) -> None:
        """The file is there."""
        self._before, self._done = self._before + file.size, 0

    def say(self, text: str, _share: float | None = None) -> None:
        """Something else than bytes."""
        self._progress(text, None)

    def _tell(self) -> None:
        self._told_at = now = time.monotonic()
        got = self._before + self._done
        rate = self._fetched / max(0.001, now - self._began)
        left = f", {(self._total - got) / rate:.0f} s left" if rate > 1 else ""
        file = f"{self._number}/{self._count} {self._name}"
        self._progress(f"downloading {file}: {in_words(got)} of {in_words(self._total)}, {in_words(rate)}/s{left}", self._share())

    def _share(self) -> float | None:
        return min(1.0, (self._before + self._done) / self._total) if self._total else None


class HubSource(Source):
    """Downloads into the cache of XI_HOME. `name` is the source's; `token_help` tells where its token is set."""

    name: str
    token_help: str = ""

    @abstractmethod
    def listing(self, ref: SourceRef) -> Listing:
        """The files of a model, pinned. Raises `Transient`, `ArtifactError` (no such model, no access)."""

    @abstractmethod
    def download(self, ref: SourceRef, listing: Listing, file: HubFile, folder: Path, download: Download) -> Path:
        """Get one file into `folder`, going on with what lies there. Answers where it is. Raises as `listing`, or `OSError` of the disk."""

    def fetch(self, ref: SourceRef, home: Path, progress: Progress) -> Path:
        cache = ModelCache(home)
        path = self._cached(cache, ref)
        if path is None:
            with cache.held(self.name, ref.id, lambda: progress(f"another launch downloads {ref.id}", None)):
                path = self._cached(cache, ref)
                if path is None:
                    return _artifact(self._pull(cache, ref, progress), cache, ref)  # its files were hashed when they came
        if settings().verify_models:
            names = [file.name for file in cache.manifest(path).files]
            cache.verify(path, progress, set(named(names, ref.files)) if ref.files else None)
        return _artifact(path, cache, ref)

    def pull(self, ref: SourceRef, home: Path, progress: Progress) -> Path:
        """Ask the hub what the revision is now, and get what isn't there. Raises as `fetch`."""
        cache = ModelCache(home)
        with cache.held(self.name, ref.id, lambda: progress(f"another download of {ref.id} runs", None)):
            return _artifact(self._pull(cache, ref, progress), cache, ref)

    def _cached(self, cache: ModelCache, ref: SourceRef) -> Path | None:
        """The folder of the model, if all that is wanted of it is there."""
        path = cache.find(self.name, ref.id, ref.revision)
        if path is None:
            return None
        names = [file.name for file in cache.manifest(path).files]
        return path if all(named(names, (pattern,)) for pattern in ref.files) else None

    def _pull(self, cache: ModelCache, ref: SourceRef, progress: Progress) -> Path:
        if settings().offline:
            raise ArtifactError(
                f"'{ref.id}' of {self.name} is not in the cache, or not whole, and this machine is set to be offline (XI_OFFLINE or "
                f"HF_HUB_OFFLINE): unset that, or pull the model where there is a network (xi pull)"
            )
        progress(f"asking {self.name} for {ref.id}", None)
        listing = self._tried(lambda: self.listing(ref), progress, lambda: 0)
        wanted = chosen(listing.files, ref)
        before = cache.find(self.name, ref.id, listing.commit)
        have = {file.name: file for file in cache.manifest(before).files} if before is not None else {}
        download = Download(wanted, progress)
        folder = cache.partial(self.name, ref.id, listing.commit)
        try:
            got = [self._get(cache, ref, listing, file, folder, have.get(file.name), download) for file in wanted]
            kept = [one for name, one in have.items() if name not in {file.name for file in got}]
            kept = [one for one in kept if cache.reuse(one.sha256, one.size, folder)]
        except OSError as error:
            raise disk_error(cache.root, error) from error
        model = CachedModel(source=self.name, id=ref.id, revision=listing.commit, files=[*kept, *got], created=time.time())
        return cache.publish(model, ref.revision)

    def _get(
        self,
        cache: ModelCache,
        ref: SourceRef,
        listing: Listing,
        file: HubFile,
        folder: Path,
        have: CachedFile | None,
        download: Download,
    ) -> CachedFile:
        """One file among the blobs. One that came damaged is got once more."""
        download.begin(file)
        known = file.sha256 or (have.sha256 if have is not None else None) or _noted(folder, file)
        if known is not None and cache.reuse(known, file.size, folder):
            download.end(file)
            return CachedFile(name=file.name, size=file.size, sha256=known)
        for last in (False, True):
            path = self._tried(lambda: self.download(ref, listing, file, folder, download), download.say, lambda: download.furthest)
            try:
                sha256, size = _taken(cache, path, folder, file)
            except ArtifactError as error:
                if last:
                    raise ArtifactError(
                        f"{ref.id}: {file.name} came damaged twice in a row: {error.message}. The cache is as it was; "
                        f"launch again later (the model may just have changed at {self.name})"
                    ) from None
                log.warning("%s: %s came damaged: %s; it is downloaded again", ref.id, file.name, error.message)
                continue
            _note(folder, file, sha256)
            download.end(file)
            return CachedFile(name=file.name, size=size, sha256=sha256)
        raise AssertionError("unreachable")

    def _tried(self, ask: Callable[[], T], progress: Progress, reached: Callable[[], int]) -> T:
        """What `ask` answers, asked again while it fails for a moment. `reached` tells how far it got."""
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
                _wait(f"{self.name}: {error}; trying again in", wait, progress)


def append(path: Path, start: int, chunks: Iterable[bytes], file: HubFile, download: Download) -> None:
    """Write what comes to `path`, from byte `start` on. More bytes than the file should have end it. Raises `OSError` of the disk."""
    there = start
    with open(path, "r+b" if start else "wb") as out:
        out.seek(start)
        out.truncate()
        download.resume(start)
        for chunk in chunks:
            out.write(chunk)
            out.flush()
            there += len(chunk)
            download.came(len(chunk))
            if there > file.size:
                break
    if there < file.size:
        raise Transient(f"the connection ended after {there} of {file.size} bytes of {file.name}")


def part_of(folder: Path, file: HubFile) -> tuple[Path, int]:
    """Where a file is downloaded to, and how many bytes of it are there."""
    path = folder / hashlib.sha256(file.name.encode()).hexdigest()[:32]
    with contextlib.suppress(FileNotFoundError):
        size = path.stat().st_size
        if size <= file.size:
            return path, size
        path.unlink()
    return path, 0


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


def _taken(cache: ModelCache, path: Path, folder: Path, file: HubFile) -> tuple[str, int]:
    size = path.stat().st_size
    if size != file.size:
        path.unlink()
        raise ArtifactError(f"it has {size} bytes, and the source says {file.size}")
    return cache.take(path, folder, file.sha256, file.git_sha1)


def _note(folder: Path, file: HubFile, sha256: str) -> None:
    """Remember the hash of a file that the hub tells none of, so that a download that is gone on with doesn't get it again."""
    if file.git_sha1 is not None:
        (folder / f"{file.git_sha1}.sha256").write_text(sha256)


def _noted(folder: Path, file: HubFile) -> str | None:
    with contextlib.suppress(OSError):
        return (folder / f"{file.git_sha1}.sha256").read_text() if file.git_sha1 is not None else None
    return None


def _wait(text: str, seconds: float, progress: Progress) -> None:
    """Wait. `progress` raises where nobody wants the model any more."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        progress(f"{text} {left:.0f} s", None)
        time.sleep(min(left, INTERVAL))


def named(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those of the names that a pattern (`*q4_k_m*.gguf`) has, in any case, in the patterns' order."""
    listed = sorted(names)
    return list(dict.fromkeys(name for one in patterns for name in listed if name == one or fnmatchcase(name.lower(), one.lower())))


def chosen(files: Iterable[HubFile], ref: SourceRef) -> list[HubFile]:
    """The files to get: those that the reference names, or all but what no engine is to load. Raises `ArtifactError`."""
    listed = list(files)
    for file in listed:
        checked_name(file.name)
    if ref.files:
        by_name = {file.name: file for file in listed}
        for pattern in ref.files:
            _check_pattern(pattern, list(by_name), ref)
        return [by_name[name] for name in named(by_name, ref.files)]
    wanted = [file for file in listed if not any(fnmatch(file.name, pattern) for pattern in UNWANTED)]
    if not any(fnmatch(file.name, pattern) for file in wanted for pattern in WEIGHTS):
        pickled = [file.name for file in listed if file.name.endswith((".bin", ".pt", ".pth"))]
        why = (
            f"its weights ({', '.join(pickled[:3])}) are pickles, which can run code when they are loaded"
            if pickled
            else "it has no weights"
        )
        raise ArtifactError(f"'{ref.id}' can't be used: {why}; xi loads .safetensors and .gguf files")
    return wanted


def _check_pattern(pattern: str, names: list[str], ref: SourceRef) -> None:
    """A pattern has to mean one file, or the parts of one."""
    found = named(names, (pattern,))
    kind = sorted(name for name in names if name.endswith(Path(pattern).suffix)) if Path(pattern).suffix else sorted(names)
    if not found:
        raise ArtifactError(f"'{ref.id}' has no file {pattern}; it has {', '.join(kind[:30]) or 'none of this kind'}")
    if "*" in pattern and len({_PART.sub("", name) for name in found}) > 1:
        raise ArtifactError(
            f"'{ref.id}' has several files {pattern}: {', '.join(found[:30])}; say which by its quantization (-q)", param="quantization"
        )


def in_words(size: float) -> str:
    """Bytes, as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
