"""Several files at once: order, words, errors, ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from xi_core.api.transfer import ModelTransfer
from xi_core.models.downloading import Download, Downloads, Transient, append, part_of
from xi_core.models.hashing import Stopped
from xi_core.models.hub_files import HubFile

FILES = [HubFile(name=f"file-{n}", size=100) for n in range(5)]


def quiet(*_: object) -> None:
    """Progress that nobody looks at."""


def test_answers_are_in_the_files_order() -> None:
    first = threading.Event()

    def get(file: HubFile, download: Download) -> str:
        if file is FILES[0]:
            assert first.wait(30)
        elif file is FILES[-1]:
            first.set()
        return file.name

    assert Downloads(FILES, get).run(quiet, 2) == [file.name for file in FILES]


def test_words_of_several_files() -> None:
    told: list[tuple[str, float | None]] = []
    both = threading.Barrier(2)

    def get(file: HubFile, download: Download) -> None:
        both.wait(30)
        download.resume(50)
        both.wait(30)
        download.came(50)

    Downloads(FILES[:2], get).run(lambda text, share, *_: told.append((text, share)), 2)
    texts = [text for text, _ in told]
    assert texts[0].startswith("downloading 1/2 file-0: 0 B of 200 B, 0 B/s")
    assert any(": 100 B of 200 B, 0 B/s" in text for text in texts), "what was there already has no rate"
    assert texts[-1].startswith("downloading 2/2 files: 200 B of 200 B")
    shares = [share for _, share in told if share is not None]
    assert shares == sorted(shares)


def test_each_file_tells_its_bytes_rate_and_time() -> None:
    """What was there already is done, and has no rate: it doesn't say how fast the rest comes."""
    told: list[ModelTransfer] = []
    both = threading.Barrier(2)

    def get(file: HubFile, download: Download) -> None:
        download.resume(50)
        both.wait(30)
        if file is FILES[0]:
            download.came(30)
            download.say("the hub is busy")
        both.wait(30)

    Downloads(FILES[:2], get).run(lambda text, share, download=None: told.append(download), 2)
    by_name = [{file.name: file for file in one.files} for one in told]
    first, second = next((one["file-0"], one["file-1"]) for one in by_name if "file-0" in one and one["file-0"].note)
    assert (first.done, first.total, first.note) == (80, 100, "the hub is busy")
    assert first.rate > 0
    assert first.eta is not None
    assert first.eta == pytest.approx(20 / first.rate)
    assert (second.done, second.total, second.rate, second.eta) == (50, 100, 0.0, None)
    last = told[-1]
    assert (last.done, last.total, last.files, last.files_done, last.files_total) == (200, 200, [], 2, 2)
    assert last.rate > 0
    assert last.eta == 0


def test_a_note_is_told_until_bytes_come() -> None:
    """Without a share: a launch that has time as long as that grows isn't to have it for a hub that fails."""
    told: list[tuple[bool, float | None]] = []

    def get(file: HubFile, download: Download) -> None:
        download.say("the hub is busy")
        download.resume(10)

    def tell(text: str, share: float | None, *_: object) -> None:
        if (one := (text.endswith("; the hub is busy"), share)) not in told:
            told.append(one)

    Downloads(FILES[:1], get).run(tell, 1)
    assert [one for one in told if one != (False, None)] == [(False, 0.0), (True, None), (False, 0.1), (False, 1.0)]


def test_nothing_new_is_told_without_a_share() -> None:
    silent = threading.Event()
    told: list[tuple[str, float | None]] = []

    def get(file: HubFile, download: Download) -> None:
        download.resume(50)
        assert silent.wait(30)

    def tell(text: str, share: float | None, *_: object) -> None:
        told.append((text, share))
        if share is None:
            silent.set()

    Downloads(FILES[:1], get).run(tell, 1)
    first = next(number for number, (_, share) in enumerate(told) if share is None)
    assert told[first][0] == told[first - 1][0]
    assert (told[first - 1][1], told[-1][1]) == (0.5, 1.0)


def test_what_came_just_before_a_silence_is_told_with_a_share() -> None:
    """A burst of bytes and then none: the words aren't to stay at what was told before it."""
    silent = threading.Event()
    told: list[float | None] = []

    def get(file: HubFile, download: Download) -> None:
        download.resume(0)
        download.came(60)
        assert silent.wait(10)

    def tell(text: str, share: float | None, *_: object) -> None:
        if ": 60 B of 100 B" in text:
            told.append(share)
            if len(told) == 2:
                silent.set()

    Downloads(FILES[:1], get).run(tell, 1)
    assert told[:2] == [0.6, None]


def test_the_first_error_is_raised_and_the_others_hear_of_the_end() -> None:
    ended: list[str] = []
    waits = threading.Event()

    def get(file: HubFile, download: Download) -> None:
        if file is FILES[0]:
            assert waits.wait(30)
            raise ValueError("broken")
        waits.set()
        try:
            while True:
                download.came(0)
        except Stopped:
            ended.append(file.name)
            raise

    with pytest.raises(ValueError, match="broken"):
        Downloads(FILES, get).run(quiet, 2)
    assert ended == ["file-1"], "and no other was begun"


def test_what_progress_raises_ends_all() -> None:
    class Enough(Exception):
        pass

    def stop(stage: str, share: float | None, *_: object) -> None:
        raise Enough

    def get(file: HubFile, download: Download) -> None:
        while True:
            download.hashed(1)

    with pytest.raises(Enough):
        Downloads(FILES, get).run(stop, 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "download"]


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    ended = threading.Event()
    download = Download(1, FILES[0], lambda download, fresh: None, ended)
    path, start = part_of(tmp_path, FILES[0], download)

    def chunks() -> object:
        yield b"1" * 40
        ended.set()
        yield b"2" * 60

    with pytest.raises(Stopped):
        append(path, start, chunks(), FILES[0], download)  # type: ignore[arg-type]
    assert path.read_bytes() == b"1" * 40
    with pytest.raises(Stopped):
        append(path, 0, [b"3"], FILES[0], download)
    assert path.read_bytes() == b"1" * 40, "nor is it cut"
    ended.clear()
    with pytest.raises(Transient, match="after 41 of 100 bytes of file-0"):
        append(*part_of(tmp_path, FILES[0], download), [b"3"], FILES[0], download)
    assert download.furthest == 41
    path.write_bytes(b"4" * 101)
    ended.set()
    with pytest.raises(Stopped):
        part_of(tmp_path, FILES[0], download)
    assert path.exists(), "it may be another launch's by now"
    ended.clear()
    assert part_of(tmp_path, FILES[0], download) == (path, 0)
    assert not path.exists()


def test_a_thread_that_can_not_be_started_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the operating system gives no more threads."""
    begun, start = threading.Event(), threading.Thread.start

    def get(file: HubFile, download: Download) -> None:
        begun.set()
        while True:
            download.came(0)

    def refused(thread: threading.Thread) -> None:
        if begun.is_set():
            raise RuntimeError("can't start new thread")
        start(thread)
        assert begun.wait(30)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Downloads(FILES, get).run(quiet, 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "download"]
