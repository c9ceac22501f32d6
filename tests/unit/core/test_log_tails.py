"""The logs of replicas: rotated, and their last lines."""

from __future__ import annotations

from pathlib import Path

from xi_core.cluster import logs


def test_log_is_rotated_once_and_its_tail_read(tmp_path: Path) -> None:
    for n in range(3):
        with logs.open_log(tmp_path, "m-0") as file:
            file.write(f"life {n}\n\n".encode() + b"".join(b"line %d\n" % i for i in range(100)))
    path = logs.log_file(tmp_path, "m-0")
    assert sorted(p.name for p in path.parent.iterdir()) == ["m-0.log", "m-0.log.1"]
    assert path.read_text().startswith("life 2")
    assert path.with_name("m-0.log.1").read_text().startswith("life 1")
    assert logs.tail(path).splitlines() == [f"line {n}" for n in range(85, 100)]
    assert path.stat().st_mode & 0o777 == 0o600


def test_tail_of_long_and_missing_logs(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert logs.tail(path) == ""
    path.write_bytes(b"\xff" * 100_000 + b"\nthe end\n")
    assert len(logs.tail(path)) <= logs.TAIL
    assert logs.tail(path).endswith("the end")
