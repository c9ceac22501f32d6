"""Hashes of a model's files: SHA-256 of many files at once, git's own hash, and names that stay inside their folder."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct

from xi_core.errors import ArtifactError
from xi_core.machine import cpus

SHA1_DIGITS, SHA256_DIGITS = 40, 64
CHUNK = 1024 * 1024
THREADS = 8
POLL = 0.2


class CachedFile(Struct, kw_only=True, frozen=True):
    """One file of a model: its path in the repository, bytes and SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


class Stopped(Exception):
    """Nobody wants the files any more."""


def sha256_of(path: Path, each: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, in hexadecimal; `each` hears of every part's bytes. Hashing lets other threads run. Raises `OSError`."""
    return _fed(hashlib.sha256(), path, each)


def git_sha1_of(path: Path) -> str:
    """The hash by which git knows a file's content: SHA-1 of `blob SIZE`, a zero byte and the content (git-hash-object)."""
    return _fed(hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False), path, None)


def _fed(digest: Any, path: Path, each: Callable[[int], None] | None) -> str:
    with open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(CHUNK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if each is not None:
                each(count)
    found: str = digest.hexdigest()
    return found


def verify_files(folder: Path, files: Sequence[CachedFile], told: Callable[[int, int], None]) -> tuple[CachedFile, str] | None:
    """The first file found that isn't as it should be, and in what; None where all are. Several are read at once.

    `told(done, total)`, in bytes, is called in this thread, and may raise to end it.
    """
    total = sum(file.size for file in files)
    lock, ended, done = threading.Lock(), threading.Event(), 0

    def each(count: int) -> None:
        nonlocal done
        if ended.is_set():
            raise Stopped
        with lock:
            done += count

    def one(file: CachedFile) -> str:
        wrong = difference(folder / checked_name(file.name), file, each)
        if wrong:
            ended.set()
        return wrong

    with ThreadPoolExecutor(max_workers=min(THREADS, cpus()), thread_name_prefix="verify") as pool:
        work = {pool.submit(one, file): file for file in sorted(files, key=lambda file: -file.size)}
        try:
            _watched(set(work), ended, lambda: told(done, total))
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)
    for future, file in work.items():
        if not future.cancelled() and not isinstance(future.exception(), Stopped) and (wrong := future.result()):
            return file, wrong
    return None


def _watched(left: set[Future[str]], ended: threading.Event, tell: Callable[[], None]) -> None:
    """Wait for all of the work, or for the first that ends it."""
    while left and not ended.is_set():
        _, left = wait(left, timeout=POLL, return_when=FIRST_EXCEPTION)
        tell()


def difference(path: Path, file: CachedFile, each: Callable[[int], None] | None = None) -> str:
    """In what a file isn't as it should be; empty where it is."""
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"it has {size} bytes, and had {file.size}"
        found = sha256_of(path, each)
    except OSError as error:
        return f"it can't be read ({error.strerror or error})"
    return "" if found == file.sha256 else f"its SHA-256 is {found}, and was {file.sha256}"


def checked_hash(value: object, digits: int) -> str:
    """A hash as a source tells it, if it is so many hexadecimal digits: files are named by it. Raises `ArtifactError`."""
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
        raise ArtifactError(f"the source gives a file the hash {str(value)[:200]!r}, which is none; nothing was written")
    return value


def checked_name(name: str) -> PurePosixPath:
    """A file's name in a repository, if it stays in its folder and is none of the cache's own. Raises `ArtifactError`."""
    path = PurePosixPath(name)
    if (
        not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or path.parts[0].startswith((".xi-", ".kept"))
    ):
        raise ArtifactError(f"the source names a file {name[:200]!r}, which would lie outside the model's folder; nothing was written")
    return path
