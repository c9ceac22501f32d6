"""Replicas that die, hang, leave and move while plain requests come in: none fails. Real processes, xi-tiny on llama.cpp."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds the launcher's folder by its pid"),
    pytest.mark.engine("llama.cpp"),
]

UID = "xi-tiny"
CLIENTS = 6
BODY = {"model": UID, "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 24, "ignore_eos": True}


class Load:
    """Clients that ask one plain request after the other, each on a connection of its own, and what they were answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]

    @property
    def answered(self) -> int:
        return self.answers.total()

    def more(self, count: int) -> None:
        """Wait until so many more requests have been answered."""
        least = self.answered + count
        wait_until(lambda: self.answered >= least, 60.0, f"{count} answers more; so far {dict(self.answers)}")

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30.0) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post("/v1/chat/completions", json=BODY)
                    whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == BODY["max_tokens"]
                    self.answers["well" if whole else answer.text] += 1
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.answers[repr(error)] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more(3 * CLIENTS)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path / "home") as running:
        yield running


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.endpoint, timeout=60.0) as client:
        yield client


def launch(http: httpx.Client, replicas: int) -> None:
    answer = http.post("/v1/models", json={"model_name": UID, "model_engine": "llama.cpp", "replica": replicas})
    assert answer.status_code == 200, answer.text
    wait_until(lambda: usable(http) == replicas, 10.0, "the gateway to know all replicas")


def metrics(http: httpx.Client) -> dict[str, float]:
    lines = http.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and not line.startswith("#")}


def usable(http: httpx.Client) -> int:
    """Replicas that the gateway would send a request to."""
    return int(metrics(http).get(f'xi_replicas_ready{{model="{UID}"}}', 0))


def replica_pids(http: httpx.Client) -> dict[str, int]:
    processes = http.get("/v1/cluster/info").raise_for_status().json()["processes"]
    return {p["name"]: p["pid"] for p in processes if p["role"] == "replica"}


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs for the time of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_stopped_and_a_killed_replica_leave_the_routing_at_once(http: httpx.Client) -> None:
    launch(http, 3)
    one, two, _ = replica_pids(http).values()
    with stopped(one):
        wait_until(lambda: usable(http) == 2, 0.75, "a stopped replica to leave the routing: three heartbeats")
    wait_until(lambda: usable(http) == 3, 5.0, "a replica that goes on to be back")
    os.kill(two, signal.SIGKILL)
    wait_until(lambda: usable(http) == 2, 0.5, "a killed replica to leave the routing")
    wait_until(lambda: usable(http) == 3, 20.0, "its next life")


def test_one_of_three_killed_and_another_stopped_fail_no_request(server: RunningServer, http: httpx.Client) -> None:
    launch(http, 3)
    killed, hung, _ = replica_pids(http).values()
    with Load(server.endpoint) as load:
        with stopped(hung):
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: metrics(http).get(f'xi_replica_losses_total{{model="{UID}"}}', 0) >= 2, 10.0, "both to be missed")
            load.more(50)
        wait_until(lambda: usable(http) == 3, 30.0, "all three to serve again")
        load.more(50)
    assert set(load.answers) == {"well"}, load.answers
    assert metrics(http)[f'xi_retries_total{{model="{UID}"}}'] > 0, "requests were on them"


def until_serving(http: httpx.Client, count: int) -> None:
    """Wait until so many replicas serve and no other process of one is left."""
    wait_until(lambda: usable(http) == len(replica_pids(http)) == count, 30.0, f"{count} replicas")


def test_scaling_down_and_up_fails_no_request(server: RunningServer, http: httpx.Client) -> None:
    launch(http, 3)
    before = set(replica_pids(http))
    with Load(server.endpoint) as load:
        for count in (1, 3, 2):
            http.put(f"/v1/models/{UID}/replicas", json={"replica": count}).raise_for_status()
            until_serving(http, count)
            load.more(50)
    assert set(load.answers) == {"well"}, load.answers
    assert set(replica_pids(http)) <= before | {f"{UID}-{n}" for n in range(6)}


@pytest.fixture
def second_worker(server: RunningServer, tmp_path: Path) -> Iterator[str]:
    """Another worker on this machine; its name."""
    folder = next(Path(tempfile.gettempdir()).glob(f"xi-{server.process.pid}-*"))
    runtime = folder / "second"
    runtime.mkdir()
    command = [sys.executable, "-m", "xi_core.cluster.worker", "--supervisor", f"ipc://{folder}/supervisor.sock", "--name", "second"]
    with (tmp_path / "second.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--runtime", str(runtime), "--watch-stdin"], env=server.environment, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    try:
        yield "second"
    finally:
        process.communicate()  # the end of its stdin
        assert process.returncode == 0, (tmp_path / "second.log").read_text()


def test_draining_a_worker_fails_no_request(server: RunningServer, http: httpx.Client, request: pytest.FixtureRequest) -> None:
    launch(http, 2)
    first = set(replica_pids(http).values())
    (name,) = {p["name"] for p in workers(http)}
    second = request.getfixturevalue("second_worker")
    wait_until(lambda: len(workers(http)) == 2, 20.0, "the second worker to join")
    with Load(server.endpoint) as load:
        http.post(f"/v1/workers/{name}/drain", json={"seconds": 60.0}).raise_for_status()
        wait_until(lambda: not first & set(replica_pids(http).values()), 40.0, "both replicas to move")
        until_serving(http, 2)
        load.more(50)
    assert set(load.answers) == {"well"}, load.answers
    assert second in {p["name"] for p in workers(http)}


def workers(http: httpx.Client) -> list[dict[str, Any]]:
    processes = http.get("/v1/cluster/info").raise_for_status().json()["processes"]
    return [p for p in processes if p["role"] == "worker"]
