"""`xi supervisor`, `xi worker` and `xi gateway` as real processes over encrypted TCP, with xi-tiny on llama.cpp; and `kill -9` of each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from xi_core import disk_client
from xi_core.api.pulls import PullOrder, PullStatus
from xi_core.client import Client
from xi_core.errors import DeadlineExceeded, Unavailable
from xi_core.testing.hub_standin import Fault, HubModel, HubStandIn
from xi_core.testing.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.engine("llama.cpp"),
]

XI = str(Path(sys.executable).with_name("xi"))
BODY = {"model": "xi-tiny", "prompt": "What is xi?", "max_tokens": 4, "temperature": 0}
MODEL, WEIGHTS = "people/large-GGUF", bytes(2_000_000)
ORDER = PullOrder(model_name=MODEL, quantization="f16")


class Town:
    """A supervisor with its gateway, and members of other homes. Everything is killed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[str]] = {}
        head = self.start("head", "supervisor", "-p", "0", "--cluster-port", "0", "--json", stdout=subprocess.PIPE)
        assert head.stdout is not None
        line = head.stdout.readline()
        assert line, self.said("head")
        self.word: dict[str, Any] = json.loads(line)
        self.http = httpx.Client(base_url=self.word["endpoint"], timeout=20.0)

    def start(self, name: str, *arguments: str, stdout: int = subprocess.DEVNULL, **env: str) -> subprocess.Popen[str]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        environment = {**os.environ, "XI_HOME": str(home), "XI_GRACE": "2", **env}
        with (home / "stderr.txt").open("ab") as log:
            process = subprocess.Popen([XI, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log, text=True)
        self.processes[name] = process
        return process

    def said(self, name: str) -> str:
        return (self.folder / name / "stderr.txt").read_text()

    def token(self, role: str = "worker") -> str:
        token: str = self.http.post("/v1/cluster/join-tokens", json={"role": role}).raise_for_status().json()["token"]
        return token

    def work(self, name: str, token: str = "", endpoint: str = "") -> None:
        """Start a worker and wait until it has joined."""
        before = self.said(name).count("has joined") if (self.folder / name).exists() else 0
        self.start(
            name, "worker", "-e", endpoint or self.word["cluster_endpoint"], "--name", name, **({"XI_JOIN_TOKEN": token} if token else {})
        )
        wait_until(lambda: self.said(name).count("has joined") > before, 20.0, f"{name} to join: {self.said(name)}")

    def launch(self, replica: int) -> dict[str, Any]:
        body = {"model_name": "xi-tiny", "model_engine": "llama.cpp", "replica": replica}
        answer = self.http.post("/v1/models", json=body)
        assert answer.status_code == 200, answer.text
        return self.status()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/v1/models/xi-tiny").raise_for_status().json()
        return found

    def pids(self, role: str) -> dict[str, int]:
        """Process ids of a role by name."""
        answer = self.http.get("/v1/cluster/info").raise_for_status().json()
        return {p["name"]: p["pid"] for p in answer["processes"] if p["role"] == role}

    def complete(self) -> int:
        return self.http.post("/v1/completions", json=BODY).status_code

    def close(self) -> None:
        self.http.close()
        for process in self.processes.values():
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for pid in of_folder(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def of_folder(folder: Path) -> list[int]:
    """Live processes whose XI_HOME is in this folder."""
    wanted, found = f"XI_HOME={folder}/".encode(), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def eventually(check: Callable[[], Any], seconds: float = 20.0, what: str = "it") -> Any:
    """What `check` answers once it is true; an HTTP error counts as not yet."""

    def tried() -> Any:
        with contextlib.suppress(httpx.HTTPError, KeyError, StopIteration):
            return check()

    return wait_until(tried, seconds, what)


@contextlib.contextmanager
def load(town: Town, clients: int = 3) -> Iterator[list[int | str]]:
    """Requests one after another from several clients, while the block runs; the statuses."""
    statuses: list[int | str] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=town.http.base_url, timeout=30.0) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/v1/completions", json=BODY)
                    statuses.append(answer.status_code if answer.status_code == 200 else answer.text)
                except httpx.HTTPError as error:
                    statuses.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: statuses, 20.0, "the first answer")
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A stand-in that workers ask which are started from now on."""
    pytest.importorskip("huggingface_hub")
    with HubStandIn() as made:
        made.models[MODEL] = HubModel(files={"m-f16.gguf": WEIGHTS})
        monkeypatch.setenv("HF_ENDPOINT", made.endpoint)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield made


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    made = Town(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def busy(town: Town) -> Town:
    """Two workers with a replica each."""
    town.work("w1", town.word["join_token"])
    town.work("w2", town.token(), endpoint=town.word["endpoint"])
    status = town.launch(2)
    assert sorted(replica["worker"] for replica in status["replicas"]) == ["w1", "w2"]
    return town


def cpu(pid: int) -> float:
    """CPU seconds so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> float:
    """Proportional memory in MB."""
    line = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1000


def test_the_head_says_how_to_join_and_all_is_small(town: Town) -> None:
    said = town.said("head")
    assert f"  xi worker -e {town.word['cluster_endpoint']} --token {town.word['join_token']}\n" in said
    assert "`xi join-token` makes more" in said
    head = [town.processes["head"].pid, *(p["pid"] for p in town.word["processes"])]
    assert sum(map(cpu, head)) < 2.5
    town.work("w1", town.word["join_token"])
    worker = [town.pids("worker")["w1"], town.pids("keeper")["w1"]]
    assert sum(map(cpu, worker)) < 2.5
    assert sum(map(pss, worker)) < 70
    for pid in (*head, *worker):
        assert b"xi1." not in Path(f"/proc/{pid}/cmdline").read_bytes()
    done = subprocess.run(
        [XI, "join-token", "-e", town.word["endpoint"], "--ttl", "5m"], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.startswith("xi1.")
    assert f"xi worker -e {town.word['cluster_endpoint']} --token {done.stdout.strip()}" in done.stderr


def test_replicas_of_both_workers_serve_through_every_gateway(busy: Town) -> None:
    assert busy.http.get("/v1/cluster/info").json()["cluster_endpoint"] == busy.word["cluster_endpoint"]
    with load(busy, clients=4) as statuses:
        wait_until(lambda: len(statuses) > 20)
    assert set(statuses) == {200}
    metrics = busy.http.get("/metrics").text
    assert 'xi_replicas_ready{model="xi-tiny"} 2' in metrics
    busy.start("g1", "gateway", "-e", busy.word["cluster_endpoint"], "--name", "g1", "-p", "0", "--token", busy.token("gateway"))
    wait_until(lambda: "xi serves at" in busy.said("g1"), 20.0, "the gateway")
    url = busy.said("g1").partition("xi serves at ")[2].split()[0]
    with httpx.Client(base_url=url, timeout=20.0) as other:
        assert eventually(lambda: other.post("/v1/completions", json=BODY).status_code == 200)
        assert [model["id"] for model in other.get("/v1/models").json()["data"]] == ["xi-tiny"]
    assert "g1" in busy.pids("gateway")


def test_a_killed_worker_fails_no_request_and_its_replica_moves(busy: Town) -> None:
    before = busy.pids("replica")
    lost = next(r["replica_id"] for r in busy.status()["replicas"] if r["worker"] == "w1")
    with load(busy) as statuses:
        os.kill(busy.pids("worker")["w1"], signal.SIGKILL)
        eventually(lambda: [r["worker"] for r in busy.status()["replicas"] if r["state"] == "READY"] == ["w2", "w2"], 15.0, "the move")
        count = len(statuses)
        wait_until(lambda: len(statuses) > count + 10)
    assert set(statuses) == {200}
    assert not Path(f"/proc/{before[lost]}").exists()
    busy.processes["w1"].wait()
    busy.work("w1")  # its key is known
    assert set(eventually(lambda: (found := busy.pids("worker")) and len(found) == 2 and found)) == {"w1", "w2"}


def test_a_killed_supervisor_fails_no_request_and_adopts_what_runs(busy: Town) -> None:
    before = busy.pids("replica")
    [supervisor] = busy.pids("supervisor").values()
    with load(busy) as statuses:
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: list(busy.pids("supervisor").values()) != [supervisor], 10.0, "another supervisor")
        eventually(lambda: busy.pids("replica") == before and busy.status()["ready_replicas"] == 2, 10.0, "the adoption")
        count = len(statuses)
        wait_until(lambda: len(statuses) > count + 10)
    assert set(statuses) == {200}
    assert set(busy.pids("worker")) == {"w1", "w2"}
    assert busy.launch(2)["replicas"][0]["restarts"] == 0
    assert "xi worker -e" not in busy.said("head").partition("starting it again")[2], "no second invitation"


def test_a_killed_gateway_and_a_killed_replica_come_back(busy: Town) -> None:
    before = busy.pids("replica")
    os.kill(busy.word["processes"][1]["pid"], signal.SIGKILL)
    busy.http.close()
    busy.http = httpx.Client(base_url=busy.word["endpoint"], timeout=20.0)
    eventually(lambda: busy.complete() == 200)
    assert busy.pids("replica") == before
    with load(busy) as statuses:
        os.kill(before["xi-tiny-0"], signal.SIGKILL)
        eventually(lambda: busy.pids("replica")["xi-tiny-0"] != before["xi-tiny-0"] and busy.status()["ready_replicas"] == 2)
    assert set(statuses) == {200}


def test_two_workers_pull_and_both_tell_how_far_they_are(town: Town, hub: HubStandIn) -> None:
    for name in ("w1", "w2"):
        town.work(name, town.token())
    hub.faults = [Fault(where="/storage/", stall_after=1_000_000, times=2)]
    pull = town.start("user", "pull", MODEL, "-q", "f16", "-e", town.word["endpoint"], stdout=subprocess.PIPE)
    lines = [f"{name}: downloading 1/1 m-f16.gguf: 1.0 MB of 2.0 MB" for name in ("w1", "w2")]
    wait_until(lambda: all(line in town.said("user") for line in lines), 8.0, "progress of both")
    hub.resume.set()
    out, _ = pull.communicate(timeout=20)
    assert pull.returncode == 0, town.said("user")
    paths = dict(line.split(": ") for line in out.splitlines())
    assert {name: Path(path).read_bytes() == WEIGHTS for name, path in paths.items()} == {"w1": True, "w2": True}
    assert all(Path(path).is_relative_to(town.folder / name) for name, path in paths.items())
    assert len(hub.gets("/storage/")) == 2


def test_a_worker_that_is_killed_while_it_pulls_is_named_and_the_other_goes_on(
    town: Town, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("w1", "w2"):
        town.work(name, town.token())
    monkeypatch.setattr(disk_client, "PULL_PATIENCE", 1.0)
    hub.faults = [Fault(where="/storage/", stall_after=1_000_000, times=2)]
    client, killed = Client(town.word["endpoint"]), 0.0

    def told(status: PullStatus) -> None:
        nonlocal killed
        if not killed and all((one.progress or 0) > 0.4 for one in status.workers):
            os.kill(town.pids("worker")["w2"], signal.SIGKILL)
            killed = time.monotonic()
        if killed and time.monotonic() > killed + 2.0:
            hub.resume.set()  # the other is not done when the first is given up

    with pytest.raises(Unavailable, match=rf"^worker w2 went away while it downloaded {MODEL}; w1 has it now$"):
        client.pull(ORDER, told)
    assert [one.worker for one in client.cached()] == ["w1"]
    town.processes["w2"].wait()
    town.work("w2")
    again = client.pull(ORDER)
    assert sorted((one.worker, one.state) for one in again.workers) == [("w1", "DONE"), ("w2", "DONE")]
    assert hub.gets("/storage/")[-1].range, "it goes on with what came"


def test_a_worker_waits_for_its_supervisor_and_says_so(town: Town) -> None:
    town.processes["head"].kill()
    town.processes["head"].wait()
    process = town.start("w1", "worker", "-e", town.word["cluster_endpoint"], "--name", "w1", "--token", town.word["join_token"])
    wait_until(lambda: "not joined yet, trying on" in town.said("w1"), 20.0, "a word")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--token", "xi1.nonsense"), "Error: the join token can't be read"),
        (("--token-file", "nowhere"), "Error: --token-file nowhere can't be read"),
        (("--token", "xi1.x", "--token-file", "nowhere"), "give one"),
        (("-e", "tcp://nonsense"), "write tcp://HOST:PORT"),
        (("--name", "../x"), "'../x' is no name"),
        ((), "doesn't know this worker, w1, yet: give a join token"),
    ],
)
def test_what_cannot_join_is_told_at_once(town: Town, arguments: tuple[str, ...], told: str) -> None:
    process = town.start("w1", "worker", "-e", town.word["cluster_endpoint"], "--name", "w1", *arguments)
    assert process.wait(20) != 0
    assert told in town.said("w1")
    assert "Traceback" not in town.said("w1")


def test_everything_stops_in_order(busy: Town) -> None:
    for name in ("w1", "w2", "head"):
        busy.processes[name].send_signal(signal.SIGTERM)
        assert busy.processes[name].wait(15) == 0
    with contextlib.suppress(DeadlineExceeded):
        wait_until(lambda: not of_folder(busy.folder), 2.0)
    assert of_folder(busy.folder) == []
    for name in ("head", "w1", "w2"):
        assert "Traceback" not in busy.said(name)
        assert "ERROR" not in busy.said(name)
