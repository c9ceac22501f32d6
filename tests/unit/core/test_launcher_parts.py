"""The launcher: whom it starts, what it says, and where it listens."""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path

import pytest

from xi_core.cluster.launcher import Launcher, check_ports, listen, say, siblings_of, url_of
from xi_core.cluster.runtime import RuntimeFolder
from xi_core.cluster.sibling import Sibling
from xi_core.errors import ConfigError


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
        with pytest.raises(ConfigError, match=r"gateway can't be started: .*unavailable"):
            launcher._start(sibling)
        launcher._started, sibling.start_at = True, 0.0
        assert launcher._look() == 0
    assert sibling.start_at > time.monotonic()
    assert "can't be started now" in capsys.readouterr().err


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
