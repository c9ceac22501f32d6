"""`native_log`: what a library writes to descriptor 2, also what it writes a little late."""

from __future__ import annotations

import os
import threading
import time

import pytest

from xi_plugins.engines.llama_cpp.native import native_log

_WHY = b"0.00.002.920 E llama_model_load: error loading model: tensor 'a' is cut\n"
_END = b"0.00.003.054 E srv          init: exiting due to model loading error\n"


def test_what_is_written_is_collected_and_written_on(capfd: pytest.CaptureFixture[str]) -> None:
    with native_log() as said:
        os.write(2, _WHY + b"0.00.2 E cmn  init: failed to load model 'm'\n" + _END)
    assert said.reasons() == "tensor 'a' is cut"
    assert "tensor 'a' is cut" in capfd.readouterr().err


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
