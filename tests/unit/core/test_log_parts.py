"""Logs are read part by part, and no character is cut where two parts meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from xi_core.cluster import logs

TEXT = "añ€😀\n" * 7


def all_parts(path: Path, start: int, most: int) -> list[str]:
    parts = []
    while True:
        text, begin, following = logs.part(path, start, most)
        if following == begin:
            return parts
        parts.append(text)
        start = following


@pytest.mark.parametrize("most", range(4, 16))
def test_characters_are_whole_wherever_parts_meet(tmp_path: Path, most: int) -> None:
    path = tmp_path / "x.log"
    path.write_text(TEXT, encoding="utf-8")
    parts = all_parts(path, 0, most)
    assert "".join(parts) == TEXT
    assert len(parts) > 4


@pytest.mark.parametrize("last", range(1, 12))
def test_the_end_of_a_log_begins_with_a_whole_character(tmp_path: Path, last: int) -> None:
    path = tmp_path / "x.log"
    path.write_text(TEXT, encoding="utf-8")
    size = path.stat().st_size
    text, begin, following = logs.part(path, -last)
    assert TEXT.endswith(text)
    assert "\ufffd" not in text
    assert (len(text.encode()), following) == (size - begin, size)
    assert size - last <= begin <= size - last + 3


def test_a_character_that_is_being_written_comes_with_the_next_part(tmp_path: Path) -> None:
    path, word = tmp_path / "x.log", "€".encode()
    path.write_bytes(b"1" + word[:2])
    assert logs.part(path, 0) == ("1", 0, 1)
    assert logs.part(path, 1) == ("", 1, 1)
    with path.open("ab") as file:
        file.write(word[2:] + b"2")
    assert logs.part(path, 1) == ("€2", 1, 5)


def test_what_is_no_utf8_is_shown_as_such_and_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"caf\xe9 \x80\x80\x80\x80\x80\x80 end")
    assert "".join(all_parts(path, 0, 4)) == "caf\ufffd " + "\ufffd" * 6 + " end"
    assert logs.part(path, -8)[0] == "\ufffd end"


def test_the_last_lines_begin_with_a_whole_character(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("€" * logs.TAIL, encoding="utf-8")
    assert set(logs.tail(path)) == {"€"}
