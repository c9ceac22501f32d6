"""The launcher and its siblings as real processes, with xi-tiny on llama.cpp: starting, stopping, and `kill -9` of each."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.engine("llama.cpp"),
]

T = TypeVar("T")
UID = "xi-tiny"


def eventually(check: Callable[[], T], seconds: float = 20.0) -> T:
    """What `check` answers once it is true; an HTTP error counts as not yet."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.HTTPError, KeyError, StopIteration):
            if found := check():
                return found
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def with_home(home: Path) -> list[int]:
    """Live processes that were started with this XI_HOME: all of a server."""
    wanted, found = f"XI_HOME={home}".encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


class Server:
    """A launcher, what it says, and the API behind it."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self.log = home / "stderr.txt"
        environment = {**os.environ, "XI_HOME": str(home), "XI_GRACE": "2", **env}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "xi_core.cluster.launcher", "--port", "0", *arguments],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        url = eventually(lambda: re.search(r"xi serves at (\S+)", self.said()))
        self.http = httpx.Client(base_url=url[1], timeout=20.0)

    def said(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        return self.log.read_text()

    def pids(self) -> dict[str, int]:
        """Process ids by role."""
        answer = self.http.get("/v1/cluster/info").raise_for_status().json()
        return {p["role"]: p["pid"] for p in answer["processes"]}

    def launch(self) -> dict[str, int]:
        """Launch xi-tiny and answer the process ids."""
        answer = self.http.post("/v1/models", json={"model_name": "xi-tiny", "model_engine": "llama.cpp"})
        assert answer.status_code == 200, answer.text
        return self.pids()

    def complete(self) -> int:
        """The status of a completion."""
        body = {"model": UID, "prompt": "What is xi?", "max_tokens": 4, "temperature": 0}
        return self.http.post("/v1/completions", json=body).status_code

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/models/{UID}").raise_for_status().json()
        return found

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()
        for pid in with_home(self.home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home")
    try:
        yield made
    finally:
        made.close()


def pss(pid: int) -> float:
    """Proportional memory in MB."""
    line = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1000


def cpu(pid: int) -> float:
    """CPU seconds so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_start_up_says_who_is_there_and_is_small(server: Server) -> None:
    pids = server.pids()
    said = server.said()
    for role in ("supervisor", "worker", "gateway"):
        assert re.search(rf"^{role} +pid {pids[role]}  ready$", said, re.MULTILINE), said
    assert said.rstrip().endswith("/docs)")
    everybody = with_home(server.home)
    assert set(pids.values()) | {server.process.pid} == set(everybody)
    assert pss(pids["supervisor"]) < 25
    assert pss(pids["worker"]) < 25
    assert sum(cpu(pid) for pid in everybody) < 4.0
    assert sum(pss(pid) for pid in everybody) < 160


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(server: Server, number: signal.Signals) -> None:
    server.launch()
    assert server.complete() == 200
    folder = _runtime(server)
    assert folder.is_dir()
    server.process.send_signal(number)
    assert server.process.wait(10) == 0
    assert with_home(server.home) == []
    assert not folder.exists()


def _runtime(server: Server) -> Path:
    return next(Path(tempfile.gettempdir()).glob(f"xi-{server.process.pid}-*"))


def test_odd_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started in a directory with modules of the standard library's names, by `nohup`, with a temporary directory of a long path."""
    for name in ("json", "selectors", "struct", "msgspec", "uvicorn"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = Server(tmp_path / "home", TMPDIR=str(long))
    finally:
        signal.signal(signal.SIGHUP, before)
    with contextlib.closing(server):
        server.launch()
        assert server.complete() == 200
        ignored = re.search(r"SigIgn:\s+(\w+)", Path(f"/proc/{server.process.pid}/status").read_text())
        assert ignored is not None
        assert int(ignored[1], 16) & 1, "nohup wants SIGHUP ignored"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert not re.search("WARNING|ERROR|Traceback", server.log.read_text())
    assert list(long.iterdir()) == []


def test_killing_the_launcher_takes_all(server: Server) -> None:
    server.launch()
    folder = _runtime(server)
    assert len(with_home(server.home)) >= 6
    server.process.kill()
    server.process.wait()
    eventually(lambda: not with_home(server.home), 2.0)
    with contextlib.closing(Server(server.home.parent / "next")):
        assert not folder.exists(), "the next launcher sweeps"


def test_killing_the_worker_takes_its_replicas_which_are_started_again(server: Server) -> None:
    before = server.launch()
    os.kill(before["worker"], signal.SIGKILL)
    eventually(lambda: not alive(before["replica"]) and not alive(before["keeper"]), 2.0)
    eventually(lambda: server.pids()["worker"] != before["worker"] and server.status()["state"] == "READY" and server.complete() == 200)
    after = server.pids()
    assert (after["supervisor"], after["gateway"]) == (before["supervisor"], before["gateway"])
    assert re.search(r"worker      was killed by SIGKILL.*; starting it again", server.said())


def test_killing_the_supervisor_loses_no_request_and_no_replica(server: Server) -> None:
    before = server.launch()
    os.kill(before["supervisor"], signal.SIGKILL)
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert server.complete() == 200
    eventually(lambda: server.status()["state"] == "READY", 5.0)
    after = server.pids()
    assert after["supervisor"] != before["supervisor"]
    assert (after["replica"], after["worker"]) == (before["replica"], before["worker"])
    assert server.launch()["replica"] == before["replica"]
    assert server.complete() == 200


def test_a_worker_that_stood_still_is_taken_back_with_its_replica(server: Server) -> None:
    before = server.launch()
    os.kill(before["worker"], signal.SIGSTOP)
    eventually(lambda: "worker" not in server.pids())
    assert server.complete() == 200
    os.kill(before["worker"], signal.SIGCONT)
    after = eventually(lambda: (found := server.pids()) and "worker" in found and found)
    assert (after["worker"], after["replica"]) == (before["worker"], before["replica"])
    assert server.status()["state"] == "READY"
    assert server.complete() == 200


def test_a_worker_that_stood_still_for_long_does_not_blame_its_replica(tmp_path: Path) -> None:
    server = Server(tmp_path / "home", XI_HANG_TIMEOUT="1.5")
    try:
        before = server.launch()
        os.kill(before["worker"], signal.SIGSTOP)
        eventually(lambda: "worker" not in server.pids())
        time.sleep(1.0)  # the time itself is what is tested: together with the supervisor's patience it is longer than the hang timeout
        os.kill(before["worker"], signal.SIGCONT)
        after = eventually(lambda: (found := server.pids()) and "worker" in found and found)
        assert after["replica"] == before["replica"]
        assert server.status()["replicas"][0]["restarts"] == 0
    finally:
        server.close()


def test_killing_the_keeper(server: Server) -> None:
    before = server.launch()
    os.kill(before["keeper"], signal.SIGKILL)
    after = eventually(lambda: (found := server.pids()) and found["keeper"] != before["keeper"] and found)
    assert after["replica"] == before["replica"]
    os.kill(after["worker"], signal.SIGKILL)
    eventually(lambda: not alive(after["replica"]) and not alive(after["keeper"]), 2.0)


def test_killing_the_gateway_keeps_the_port(server: Server) -> None:
    before = server.launch()
    os.kill(before["gateway"], signal.SIGKILL)
    server.http.close()
    server.http = httpx.Client(base_url=server.http.base_url, timeout=20.0)
    after = eventually(server.pids)
    assert after["gateway"] != before["gateway"]
    assert after["replica"] == before["replica"]
    eventually(lambda: server.complete() == 200)


def test_killing_a_replica_again_and_again_ends_failed(server: Server) -> None:
    pid = server.launch()["replica"]
    for life in range(4):
        os.kill(pid, signal.SIGKILL)
        if life < 3:
            pid = eventually(
                lambda old=pid: (new := server.pids().get("replica")) and new != old and server.status()["state"] == "READY" and new
            )  # type: ignore[misc]
    status = eventually(lambda: (found := server.status()) and found["state"] == "FAILED" and found)
    assert "ended 4 times within 60 s" in str(status)
    assert server.launch()["replica"] != pid


def test_a_port_in_use_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "xi_core.cluster.launcher", "--port", port], capture_output=True, text=True, timeout=20, check=False
        )
    assert done.returncode == 1
    assert re.fullmatch(rf"Error: port {port} of 127.0.0.1 is in use.*--port\n", done.stderr), done.stderr


def test_what_cannot_start_ends_the_launcher(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xi_core.cluster.launcher", "--port", "0"],
        env={**os.environ, "XI_HOME": str(tmp_path), "XI_LAUNCH_STRATEGY": "nonsense"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 78, "no restart would help"
    assert "unknown scheduler 'nonsense'; known:" in done.stderr
    assert "supervisor could not be started" in done.stderr
    assert "starting it again" not in done.stderr
    assert "Traceback" not in done.stderr
    assert with_home(tmp_path) == []
