"""Clients that leave, and processes that die: nothing goes on for nobody, and nothing is left."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until


def metrics(server: RunningServer) -> dict[str, float]:
    """`/metrics`, name with labels → value."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and not line.startswith("#")}


def in_flight(server: RunningServer) -> float:
    return sum(value for name, value in metrics(server).items() if name.startswith("xi_replica_running"))


@pytest.mark.parametrize("uid", ["xi-tiny", "xi-tiny-torch"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_generation(server: RunningServer, uid: str, stream: bool) -> None:
    body = {"model": uid, "messages": [{"role": "user", "content": "Tell me a story."}], "stream": stream, "ignore_eos": True, "n": 8}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    if stream:
        assert connection.getresponse().read(100)
    wait_until(lambda: in_flight(server) > 0, 5.0, "the request to run")
    connection.close()
    wait_until(lambda: in_flight(server) == 0, 1.25, "the generation to stop")  # a second, and a ping until the gateway is told


# ---- processes ----------------------------------------------------------------------------------


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path / "home") as running:
        done = running.xi("launch", "xi-tiny")
        assert done.returncode == 0, done.stderr
        yield running


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs for the time of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def family(server: RunningServer) -> list[int]:
    """The launcher and everything below it, and whatever carries this server's home in its environment."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("XI_HOME") == str(server.home):
                found.add(process.pid)
        except psutil.Error:
            continue
    return sorted(found - {os.getpid()})


def ask(server: RunningServer) -> str:
    answer: Any = server.client.chat("xi-tiny", [{"role": "user", "content": "What is 2 + 3?"}], temperature=0)
    return str(answer.choices[0].message.content)


def answers(server: RunningServer) -> bool:
    try:
        return "5" in ask(server)
    except Exception:
        return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_no_process(own_server: RunningServer, how: signal.Signals) -> None:
    everyone = family(own_server)
    assert len(everyone) >= 5
    own_server.process.send_signal(how)
    assert own_server.process.wait(20) in (0, 130, 143)
    wait_until(lambda: not alive(everyone), 2.0, "all processes to end")
    assert not family(own_server)


def test_killing_the_launcher_takes_all(own_server: RunningServer) -> None:
    everyone = family(own_server)
    own_server.kill()
    wait_until(lambda: not alive(everyone), 2.0, "all processes to end")
    assert not family(own_server)


@pytest.mark.parametrize("role", ["supervisor", "gateway", "worker", "replica", "keeper"])
def test_killing_one_process_ends_what_depended_on_it_and_xi_recovers(own_server: RunningServer, role: str) -> None:
    (pid,) = own_server.pids(role)
    replicas = own_server.pids("replica")
    os.kill(pid, signal.SIGKILL)
    if role in ("worker", "replica"):
        wait_until(lambda: not alive(replicas), 2.0, "its replicas to end")
    wait_until(lambda: answers(own_server), 20.0, f"an answer after the {role}'s death")
    if role in ("supervisor", "gateway", "keeper"):
        assert alive(replicas) == replicas, "replicas serve on"
    own_server.stop()
    assert not family(own_server)


def test_serving_goes_on_while_the_supervisor_is_away(own_server: RunningServer) -> None:
    (pid,) = own_server.pids("supervisor")
    with stopped(pid):
        for _ in range(5):
            assert "5" in ask(own_server)


def test_a_stopped_replica_is_routed_around(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "home") as server:
        assert server.xi("launch", "xi-tiny", "--replica", "2").returncode == 0
        first, _ = server.pids("replica")
        with stopped(first):
            for _ in range(20):
                assert "5" in ask(server)


def test_a_killed_replica_among_two_is_not_seen(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "home") as server:
        assert server.xi("launch", "xi-tiny", "--replica", "2").returncode == 0
        first, _ = server.pids("replica")
        script = "import sys; from xi_core.client import Client; c = Client(sys.argv[1])\n"
        script += "for _ in range(300): assert '5' in c.chat('xi-tiny', [{'role': 'user', 'content': 'What is 2 + 3?'}], temperature=0).choices[0].message.content"
        load = [subprocess.Popen([sys.executable, "-c", script, server.endpoint]) for _ in range(2)]
        wait_until(lambda: sum(v for name, v in metrics(server).items() if name.startswith("xi_requests_total")) > 20, 10.0, "load")
        os.kill(first, signal.SIGKILL)
        assert [one.wait(60) for one in load] == [0, 0]
