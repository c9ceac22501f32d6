"""How a process has ended, in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xi_core.process_end import how_ended


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with status 0"),
        (7, "ended with status 7"),
        (-15, "was killed by SIGTERM"),
        (-99, "was killed by signal 99"),
        (None, "still runs"),
    ],
)
def test_in_words(status: int | None, words: str) -> None:
    assert how_ended(status) == words


def test_a_kill_that_nobody_did_is_the_systems_when_memory_is_out() -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], check=False)
    assert how_ended(ended.returncode).startswith("was killed by SIGKILL (where nobody did so, the system ran out of memory")
