"""`native_log`: what a library writes to descriptor 2, also what it writes a little late."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xi_plugins.engines.llama_cpp.native import native_log

_WHY = b"0.00.002.920 E llama_model_load: error loading model: tensor 'a' is cut\n"
_END = b"0.00.003.054 E srv          init: exiting due to model loading error\n"


def test_what_is_written_is_collected_and_written_on(capfd: pytest.CaptureFixture[str]) -> None:
    with native_log() as said:
        os.write(2, _WHY + b"0.00.2 E cmn  init: failed to load model 'm'\n" + _END)
    assert said.reasons() == "tensor 'a' is cut"
    assert "tensor 'a' is cut" in capfd.readouterr().err


ABORTS = """
import os, sys
from xi_plugins.engines.llama_cpp.native import native_log
with native_log() as said:
    os.write(2, b"CUDA error: no kernel image is available\\n")
    {end}
print(said.text, end="")
"""


@pytest.mark.parametrize(("end", "status", "told"), [("os.abort()", -6, ""), ("pass", 0, "CUDA error: no kernel image is available\n")])
def test_what_is_written_before_an_abort_is_in_the_log_file(tmp_path: Path, end: str, status: int, told: str) -> None:
    path = tmp_path / "replica.log"
    path.write_text("before\n")
    with path.open("ab") as log:
        ended = subprocess.run([sys.executable, "-c", ABORTS.format(end=end)], stderr=log, stdout=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stdout) == (status, told)
    assert path.read_text() == "before\nCUDA error: no kernel image is available\n"


def test_the_end_of_the_log_may_come_after_the_failure() -> None:
    def late() -> None:
        time.sleep(0.1)
        os.write(2, _WHY)
        time.sleep(0.1)
        os.write(2, _END)

    writer = threading.Thread(target=late)
    with native_log() as said:
        writer.start()
        said.wait_for_end()
    writer.join()
    assert said.reasons() == "tensor 'a' is cut"


def test_a_log_without_an_end_is_waited_for_no_longer_than_the_limit() -> None:
    with native_log() as said:
        os.write(2, b"something else\n")
        said.wait_for_end(limit=0.05)
    assert said.reasons() == "its log does not say why"
