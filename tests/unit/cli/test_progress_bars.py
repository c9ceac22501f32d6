"""How launches and downloads are drawn: bars within a terminal's width, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import sys

import pytest
from rich.cells import cell_len

from xi_cli import progress
from xi_cli.progress import Bars, LaunchProgress
from xi_core.api.control import LaunchSpec, ModelStatus, ReplicaStatus
from xi_core.api.transfer import FileTransfer, ModelTransfer

NAMES = [f"model-0000{n}-of-00006.safetensors" for n in range(1, 4)]


def coming(*files: FileTransfer) -> ModelTransfer:
    return ModelTransfer(done=1_200_000_000, total=4_000_000_000, rate=20e6, eta=140.0, files=list(files), files_done=1, files_total=6)


def file(name: str, note: str = "") -> FileTransfer:
    return FileTransfer(name=name, done=300_000_000, total=1_000_000_000, rate=5e6, eta=140.0, note=note)


class Terminal(io.StringIO):
    """What is drawn, frame over frame."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return [line.rstrip() for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())) if line.strip()]


@pytest.fixture(params=[40, 80, 200])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def test_a_terminal_shows_every_file_within_its_width(
    terminal: Terminal, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    width = request.node.callspec.params["terminal"]
    with Bars() as bars:
        bars.show("w1", "downloading 3/6 x: …", 0.3, coming(file(NAMES[0]), file(NAMES[1])))
        bars.show("w2", "verifying the files", 0.5)
        bars.show("w1", "downloading 3/6 x: …", 0.3, coming(file(NAMES[1]), file(NAMES[2], "the hub answers 503; trying again in 9 s")))
    assert max(map(cell_len, terminal.lines())) <= width
    frame = terminal.lines()[-4:]
    wanted = [
        "w1: downloading 1.2 GB of 4.0 GB, 20.0 MB/s, 2 min left (1/6 files)",
        "  300.0 MB of 1.0 GB, 5.0 MB/s, 2 min left  model-00002-of-00006.safetensors",
        "  the hub answers 503; trying again in 9 s  model-00003-of-00006.safetensors",
        "w2: verifying the files",
    ]
    room = {40: 20, 80: 52, 200: 160}[width]
    for line, text in zip(frame, wanted, strict=True):
        assert text in line if len(text) <= room else f"{text[: room - 4]}" in line and "…" in line


def test_a_launch_is_shown_by_its_replicas(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    spec = LaunchSpec(model_name="m")
    replica = ReplicaStatus(replica_id="m-0", state="PREPARING", stage="downloading", progress=0.3, download=coming(file(NAMES[0])))
    with LaunchProgress() as show:
        show(ModelStatus(model_uid="m", spec=spec, state="PENDING", created=1))
        show(ModelStatus(model_uid="m", spec=spec, state="PREPARING", created=1, replicas=[replica]))
    last = terminal.lines()[-2:]
    assert "m-0: download" in last[0]
    assert "300.0 MB" in last[1]


@pytest.mark.parametrize("dumb", [True, False], ids=["dumb terminal", "no terminal"])
def test_without_a_terminal_lines_are_plain(dumb: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Terminal() if dumb else io.StringIO()
    monkeypatch.setattr(sys, "stderr", drawn)
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm")
    with Bars() as bars:
        bars.show("w1", "downloading 3/6 a: 1.2 GB of 4.0 GB", 0.3, coming(file("a"), file("b", "the hub is busy")))
        bars.show("w1", "downloading 3/6 a: 1.3 GB of 4.0 GB", 0.3, coming(file("a"), file("b")))
        bars.show("w1", "downloading 4/6 c: 1.4 GB of 4.0 GB", 0.3, coming(file("c")))
        monkeypatch.setattr(progress, "LINES", 0.0)
        bars.show("w1", "downloading 4/6 c: 1.5 GB of 4.0 GB", 0.3, coming())
        bars.show("w1", "downloading 4/6 c: 1.5 GB of 4.0 GB", 0.3, coming())
        bars.show("", "downloading 1/1 x: 2 MB of 4 MB", 0.5, ModelTransfer(done=1, total=2, files=[file("x")], files_total=1))
    assert drawn.getvalue().splitlines() == [
        "w1: downloading 3/6 a: 1.2 GB of 4.0 GB",
        "w1:   a: 300.0 MB of 1.0 GB, 5.0 MB/s, 2 min left",
        "w1:   b: the hub is busy",
        "w1: downloading 4/6 c: 1.4 GB of 4.0 GB",
        "w1:   c: 300.0 MB of 1.0 GB, 5.0 MB/s, 2 min left",
        "w1: downloading 4/6 c: 1.5 GB of 4.0 GB",
        "downloading 1/1 x: 2 MB of 4 MB",
    ]
