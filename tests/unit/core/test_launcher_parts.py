"""The launcher: whom it starts, what it says, and where it listens."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.cluster import launcher as module
from xi_core.cluster.control_process import set_up_logging
from xi_core.cluster.launcher import Launcher, check_ports, listen, main, say, siblings_of, url_of
from xi_core.cluster.runtime import RuntimeFolder
from xi_core.cluster.sibling import Sibling
from xi_core.config import settings
from xi_core.errors import ConfigError, Unavailable


@pytest.mark.parametrize(("host", "exposed"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_supervisor_is_told_whether_other_machines_reach_the_server(tmp_path: Path, host: str, exposed: bool) -> None:
    runtime = RuntimeFolder()
    try:
        with listen(host, 0) as listening:
            supervisor = siblings_of(listening, runtime, None)[0]
    finally:
        runtime.remove()
    assert ("--exposed" in supervisor._command) is exposed


def test_a_sibling_for_which_there_is_no_room_is_tried_again_later(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure to fork must not end the others, which serve."""
    monkeypatch.setattr(Launcher, "_catch_signals", lambda self: None)
    with socket.socket() as listening:
        sibling = Sibling("gateway", ["nothing"], secret=False)
        launcher = Launcher(listening, [sibling], 1.0)

        def full() -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(sibling, "start", full)
        with pytest.raises(Unavailable, match=r"gateway can't be started: .*unavailable"):
            launcher._start(sibling)
        launcher._started, sibling.start_at = True, 0.0
        assert launcher._look() == 0
    assert sibling.start_at > time.monotonic()
    assert "can't be started now" in capsys.readouterr().err


def test_a_first_start_for_which_there_is_no_room_is_told_and_may_be_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(sibling: Sibling) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setenv("XI_HOME", str(tmp_path))
    monkeypatch.setattr(Sibling, "start", full)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)}
    try:
        assert main(["--host", "127.0.0.1", "--port", "0"]) == 1
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "Error: supervisor can't be started: [Errno 11] Resource temporarily unavailable" in capsys.readouterr().err


def test_nobody_reads_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Broken())
    say("hello")


def test_a_port_in_use_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is in use.*--port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("port", "told"),
    [
        (9998, "port 9998 is asked for twice: by --port for HTTP, and by --cluster-port 9998 for workers and gateways; choose"),
        (
            9999,
            "port 9999 is asked for twice: by --port for HTTP, and by --cluster-port 9998, whose next one is where machines join; choose",
        ),
    ],
)
def test_a_port_that_is_asked_for_twice_is_told_with_both_its_uses(port: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_ports(port, 9998)
    for good in ((9997, 9998), (10000, 9998), (0, 0), (1, 0)):
        check_ports(*good)


def test_a_host_that_is_none() -> None:
    with pytest.raises(ConfigError, match="--host"):
        listen("198.51.100.77", 0)


def test_listen_and_its_url() -> None:
    with listen("127.0.0.1", 0) as found:
        assert url_of(found) == f"http://127.0.0.1:{found.getsockname()[1]}"
        assert not os.get_inheritable(found.fileno())


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`main` in this process, whose descriptors and settings stay as they are; nothing would start."""
    for name in ("XI_API_KEY", "XI_HOST", "XI_ALLOW_ORIGINS", "XI_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(module, "hold_standard_streams", lambda: None)
    monkeypatch.setattr(Launcher, "__init__", lambda *_, **__: pytest.fail("it would start"))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize(
    ("environment", "arguments", "told"),
    [
        ({"XI_GRACE": "-1"}, [], "XI_GRACE='-1'"),
        ({"XI_LOG_LEVEL": "loud"}, [], "XI_LOG_LEVEL='loud' is none of debug, info, warning, error"),
        ({"XI_ALLOW_ORIGINS": "null"}, [], "'null' is no origin"),
        ({"XI_HOST": "0.0.0.0"}, [], "set a key with XI_API_KEY"),
        ({}, ["--port", "9998", "--cluster-port", "9998"], "port 9998 is asked for twice"),
    ],
)
@pytest.mark.usefixtures("no_start")
def test_wrong_settings_end_the_launcher_with_the_status_that_no_restart_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], arguments: list[str], told: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([*(arguments or ["--port", "0"])]) == 78
    assert told in capsys.readouterr().err


@pytest.mark.usefixtures("no_start")
def test_a_port_in_use_is_nothing_that_no_restart_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 1
    assert "is in use" in capsys.readouterr().err


def test_a_sibling_that_wrong_settings_end_ends_the_launcher_with_its_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Launcher, "_catch_signals", lambda self: None)
    with socket.socket() as listening:
        for ends_with, status in ((78, 78), (1, 1)):
            sibling = Sibling("gateway", ["nothing"], secret=False)
            monkeypatch.setattr(module, "TRIES", 1)
            sibling._process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({ends_with})"], stdin=subprocess.PIPE)
            sibling._process.wait(20)
            assert Launcher(listening, [sibling], 1.0)._look() == status
    assert "gateway could not be started: it ended with status 78" in capsys.readouterr().err


def test_a_log_level_that_is_none_is_told_by_each_process() -> None:
    with pytest.raises(ConfigError, match="XI_LOG_LEVEL='loud' is none of debug, info, warning, error") as told:
        set_up_logging("worker", "loud")
    assert told.value.param == "XI_LOG_LEVEL"
