"""Several files of one model downloaded at once: how far they are, one end for all, and what a source writes with. Used by `hub.py`.

The files come in threads of their own; what is told and raised is told and raised in the thread of the fetch. A thread that waits for its
hub when the end comes isn't waited for: it looks before it writes, and so writes no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from xi_core.api.transfer import FileTransfer, ModelTransfer
from xi_core.models.hashing import Stopped
from xi_core.models.hub_files import HubFile
from xi_core.models.source import Progress

INTERVAL = 0.2
"""Seconds between words on progress."""
LEAVE = 2.0
"""Seconds in which threads that don't wait for their hub are to see the end."""
T = TypeVar("T")


class Transient(Exception):
    """The hub, or the way to it, fails at the moment. `wait`: seconds that it asks for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Download:
    """Progress of one file. Each method that tells of it raises `Stopped` once nobody wants the model any more."""

    def __init__(self, number: int, file: HubFile, told: Callable[[Download, int], None], ended: threading.Event) -> None:
        """`told` hears of it, and of how many bytes have just come; below 0: of something else."""
        self.number, self.file = number, file
        self.done = 0
        self.furthest = 0
        """As far as it ever got, in bytes: what is got again doesn't count."""
        self.note = ""
        """Something else than bytes, such as why it waits."""
        self._fetched, self._began = 0, time.monotonic()
        self._told, self._ended = told, ended

    def check(self) -> None:
        """Go on only while the model is wanted. A source calls it before it writes."""
        if self._ended.is_set():
            raise Stopped

    def hashed(self, _bytes: int) -> None:
        """So many bytes of it were read back."""
        self.check()

    def resume(self, done: int) -> None:
        """So many bytes of the file are there already."""
        self.check()
        self.done, self.note = done, ""
        self._told(self, 0)

    def came(self, fresh: int) -> None:
        """So many bytes more."""
        self.check()
        self.done, self.note = self.done + fresh, ""
        self._fetched += fresh
        self.furthest = max(self.furthest, self.done)
        self._told(self, fresh)

    def say(self, text: str) -> None:
        """Something else than bytes."""
        self.check()
        self.note = text
        self._told(self, -1)

    def transfer(self, now: float) -> FileTransfer:
        """How far it is. `now`: monotonic seconds."""
        rate, eta = _pace(self.file.size - self.done, self._fetched, now - self._began)
        return FileTransfer(name=self.file.name, done=self.done, total=self.file.size, rate=rate, eta=eta, note=self.note)


class Downloads(Generic[T]):
    """The files of one model, got in their order and several at once. `get` gets one."""

    def __init__(self, files: Sequence[HubFile], get: Callable[[HubFile, Download], T]) -> None:
        self._files, self._get = files, get
        self._got: dict[int, T] = {}
        self._total = sum(file.size for file in files)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._running: list[Download] = []
        self._left = iter(enumerate(files, 1))
        self._whole = 0
        self.fetched = 0
        """Bytes that came over the network."""
        self._grown = False
        """Since it was last told."""
        self._began = self._told_at = time.monotonic()
        self._said: queue.SimpleQueue[tuple[str, float | None, ModelTransfer] | None] = queue.SimpleQueue()
        """What the fetch's thread is to tell; None: a thread has ended."""
        self._error: BaseException | None = None

    def run(self, progress: Progress, workers: int) -> list[T]:
        """What `get` answers for each file. The first error ends the others and is raised, and so is what `progress` raises."""
        count = min(workers, len(self._files))
        threads = [threading.Thread(target=self._work, name="download", daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            self._tell(progress, count)
        finally:
            self._ended.set()
            until = time.monotonic() + LEAVE
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join(max(0.0, until - time.monotonic()))
        if self._error is not None:
            raise self._error
        return [self._got[number] for number in range(1, len(self._files) + 1)]

    def _tell(self, progress: Progress, running: int) -> None:
        """Until all threads have ended, or one failed.

        While nothing comes it is told again, so that a cancel is heard; without a share, which would give a launch more time.
        """
        while running and not self._ended.is_set():
            try:
                told = self._said.get(timeout=INTERVAL)
            except queue.Empty:
                with self._lock:
                    self._say()
                continue
            if told is None:
                running -= 1
                continue
            progress(*told)

    # ---- in a thread of its own ---------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._ended.is_set() and (download := self._next()) is not None:
                self._got[download.number] = self._get(download.file, download)
                self._end(download)
        except Stopped:
            pass
        except BaseException as error:  # whatever it is, the fetch's thread raises it
            with self._lock:
                if self._error is None and not self._ended.is_set():
                    self._error = error
            self._ended.set()
        finally:
            self._said.put(None)

    def _next(self) -> Download | None:
        with self._lock:
            number, file = next(self._left, (0, None))
            if file is None:
                return None
            download = Download(number, file, self._heard, self._ended)
            self._running.append(download)
            self._grown = True
            self._say()
            return download

    def _end(self, download: Download) -> None:
        with self._lock:
            self._running.remove(download)
            self._whole += download.file.size
            self._grown = True
            self._say()

    def _heard(self, download: Download, fresh: int) -> None:
        with self._lock:
            self.fetched += max(0, fresh)
            self._grown = self._grown or fresh >= 0
            if fresh <= 0 or time.monotonic() - self._told_at >= INTERVAL:
                self._say()

    def _say(self) -> None:
        """With the lock: what is told is in order. Without a share where nothing has grown."""
        self._told_at = now = time.monotonic()
        grown, self._grown = self._grown, False
        got = self._whole + sum(download.done for download in self._running)
        rate, eta = _pace(self._total - got, self.fetched, now - self._began)
        files = [download.transfer(now) for download in self._running]
        whole = ModelTransfer(
            done=got, total=self._total, rate=rate, eta=eta, files=files, files_done=len(self._got), files_total=len(self._files)
        )
        notes = "".join(f"; {file.note}" for file in files if file.note)
        share = min(1.0, got / self._total) if self._total and grown else None
        self._said.put((f"downloading {self._names()}: {whole.words()}{notes}", share, whole))

    def _names(self) -> str:
        """The file that was begun last."""
        if not self._running:
            return f"{len(self._got)}/{len(self._files)} files"
        last = self._running[-1]
        return f"{last.number}/{len(self._files)} {last.file.name}"


def _pace(left: int, fetched: int, seconds: float) -> tuple[float, float | None]:
    """Bytes per second, and the seconds until the bytes that are left have come; None while next to nothing comes."""
    rate = fetched / max(0.001, seconds)
    return rate, max(0, left) / rate if rate > 1 else None


def append(path: Path, start: int, chunks: Iterable[bytes], file: HubFile, download: Download) -> None:
    """Write what comes to `path`, from byte `start` on. More bytes than the file should have end it. Raises `OSError` of the disk."""
    there = start
    download.check()
    with open(path, "r+b" if start else "wb") as out:
        out.seek(start)
        out.truncate()
        download.resume(start)
        for chunk in chunks:
            download.check()
            out.write(chunk)
            out.flush()
            there += len(chunk)
            download.came(len(chunk))
            if there > file.size:
                break
    if there < file.size:
        raise Transient(f"the connection ended after {there} of {file.size} bytes of {file.name}")


def part_path(folder: Path, file: HubFile) -> Path:
    """Where a file is downloaded to."""
    return folder / hashlib.sha256(file.name.encode()).hexdigest()[:32]


def part_of(folder: Path, file: HubFile, download: Download) -> tuple[Path, int]:
    """Where a file is downloaded to, and how many bytes of it are there."""
    path = part_path(folder, file)
    with contextlib.suppress(FileNotFoundError):
        size = path.stat().st_size
        if size <= file.size:
            return path, size
        download.check()  # after the end it may be another launch's
        path.unlink()
    return path, 0
