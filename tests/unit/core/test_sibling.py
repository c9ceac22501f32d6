"""A child of the launcher: its word, and what it inherits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xi_core.cluster.sibling import Sibling


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_descriptors_that_were_closed_are_held(tmp_path: Path) -> None:
    """Else the listening socket would be descriptor 0, 1 or 2, and a child's log would be written to it."""
    found = tmp_path / "found"
    code = (
        "import os, sys; from xi_core.cluster.launcher import hold_standard_streams, say; hold_standard_streams(); say('nobody hears')\n"
        "what = [(os.readlink(f'/proc/self/fd/{n}'), os.get_inheritable(n)) for n in range(3)]\n"
        "open(sys.argv[1], 'w').write(repr(what))"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, str(found)]
    assert subprocess.run(command, timeout=20, check=False).returncode == 0
    assert found.read_text() == repr([("/dev/null", True)] * 3)


class Talking(Sibling):
    """A sibling whose stdout is a pipe of the test."""

    def __init__(self, fd: int) -> None:
        super().__init__("worker", [], secret=False)
        self.fd = fd

    @property
    def stdout(self) -> int:
        return self.fd


def test_what_a_plugin_prints_is_no_word_for_the_launcher() -> None:
    reading, writing = os.pipe()
    sibling = Talking(reading)
    try:
        for line in (b"5\n", b"[1]\n", b"null\n", b"hello\n", b"[" * 2000 + b"\n", b'{"role": "gateway"}\n'):
            os.write(writing, line)
            assert sibling.hear()
        assert not sibling.ready
        os.write(writing, b'{"role": "worker", "pid": 1}\n')
        sibling.hear()
        assert sibling.ready
    finally:
        os.close(writing)
        assert not sibling.hear()
        os.close(reading)


def test_the_word_that_all_are_to_stop_does_not_say_that_it_is_ready() -> None:
    reading, writing = os.pipe()
    sibling = Talking(reading)
    try:
        os.write(writing, b'{"role": "worker", "pid": 1, "detail": "w1"}\n')
        sibling.hear()
        sibling.fresh = False
        os.write(writing, b'{"role": "worker", "pid": 1, "stop": true}\n')
        sibling.hear()
        assert (sibling.stop_asked, sibling.fresh, sibling.word["detail"]) == (True, False, "w1")
    finally:
        os.close(writing)
        os.close(reading)
