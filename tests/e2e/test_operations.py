"""What an operator does with a server that runs: scale, look at logs, dry runs, drain, stop; and what is said to wrong orders."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.errors import InvalidRequest, ModelNotFound, WorkerNotFound
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("operations")) as running:
        running.client.launch("xi-tiny", model_engine="llama.cpp")
        yield running


def out(server: RunningServer, *arguments: str) -> str:
    done = run(server, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(server: RunningServer, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    return server.xi(*arguments, input=input, timeout=60.0)


def ready(server: RunningServer) -> int:
    return server.client.model("xi-tiny").ready_replicas


def test_scaling_while_it_serves(server: RunningServer) -> None:
    out(server, "scale", "xi-tiny", "2")
    wait_until(lambda: ready(server) == 2, 30.0, "both replicas to be ready")
    assert "2/2" in out(server, "list")
    out(server, "scale", "xi-tiny", "1")
    wait_until(lambda: len(server.client.model("xi-tiny").replicas) == 1, 30.0, "one replica to go")
    assert server.client.model("xi-tiny").state == "READY"
    assert server.client.chat("xi-tiny", [{"role": "user", "content": "Hi"}]).choices[0].message.content


def test_orders_that_can_not_be_carried_out(server: RunningServer) -> None:
    client = server.client
    with pytest.raises(InvalidRequest, match=r"replica") as wrong:
        client.scale("xi-tiny", 0)
    assert wrong.value.param == "replica"
    with pytest.raises(ModelNotFound, match="launched: xi-tiny"):
        client.scale("other", 2)
    with pytest.raises(ModelNotFound):
        client.log("other")
    with pytest.raises(InvalidRequest, match="there is no xi-tiny-7; replicas of xi-tiny: xi-tiny-"):
        client.log("xi-tiny", replica=7)
    with pytest.raises(InvalidRequest, match="has 1 rank"):
        client.log("xi-tiny", rank=3)
    with pytest.raises(WorkerNotFound, match="there is no worker 'nowhere'; workers: "):
        client.drain("nowhere")
    failed = run(server, "drain", "nowhere")
    assert failed.returncode == 1
    assert "there is no worker 'nowhere'" in failed.stderr


def test_dry_runs(server: RunningServer) -> None:
    shown = out(server, "launch", "xi-tiny", "-u", "more", "-r", "2", "-en", "llama.cpp", "--explain")
    assert "runs on CPU" in shown
    assert [model.id for model in server.client.models()] == ["xi-tiny"]
    (report,) = json.loads(out(server, "launch", "xi-tiny", "-u", "more", "--explain", "--json"))
    assert report["placed"]
    assert report["candidates"][0]["taken"]
    refused = run(server, "launch", "xi-tiny", "-u", "more", "--n-gpu", "2", "-en", "llama.cpp", "--explain")
    assert refused.returncode == 1
    assert "would find no place" in refused.stderr
    assert "has no devices, only CPU" in refused.stdout
    broken = run(server, "launch", "xi-tiny", "--replica-config", "[{'worker'", "--explain")
    assert broken.returncode == 2
    assert "write a JSON list with an object for each replica" in broken.stderr


def test_layouts_that_can_not_be(server: RunningServer) -> None:
    for arguments, words in [
        (("--n-worker", "2", "-en", "llama.cpp"), "engine llama.cpp can't share a model over several workers (n_worker 2)"),
        (("--gpu-pool", "1", "--n-gpu", "none"), "gpu_pool limits devices, but the replicas run on CPU"),
        (("--gpu-pool", "1", "--n-gpu", "2"), "gpu_pool is 1, and one replica alone takes 2 device(s)"),
        (("--gpu-idx", "0", "--n-gpu", "2"), "gpu_idx names 1 device(s), and n_gpu asks for 2"),
        (("-r", "2", "--replica-config", '[{"n_gpu": 0}]'), "replica_config describes 1 replica(s), and replica is 2"),
        (("--scheduler", "fastest"), "idle_first"),
        (("--worker-ip", "10.0.0.9"), "worker_ip: there is no worker '10.0.0.9'; workers: "),
        (("--replica-config", '[{"n_gpu": 0, "gpu_idx": [0]}]'), "gpu_idx names devices, but replica_config[0].n_gpu asks for none"),
    ]:
        failed = run(server, "launch", "xi-tiny", "-u", "wrong", *arguments)
        assert failed.returncode == 1, arguments
        assert words in failed.stderr, failed.stderr
    assert [model.id for model in server.client.models()] == ["xi-tiny"]


def test_the_cluster_is_shown(server: RunningServer) -> None:
    (worker,) = server.client.workers()
    assert (worker.state, worker.differences) == ("ready", [])
    assert worker.cpus > 0
    assert "llama.cpp" in worker.engines
    shown = out(server, "cluster")
    assert worker.name in shown
    assert "CPU" in shown


def test_logs_are_read_where_they_are_and_followed(server: RunningServer) -> None:
    client = server.client
    replica = client.model("xi-tiny").replicas[0]
    log = server.home / "logs" / f"{replica.replica_id}.log"
    with log.open("a") as file:
        file.write("a line for the test\n")
    assert out(server, "logs", "xi-tiny").endswith("a line for the test\n")
    part = client.log("xi-tiny")
    assert (part.worker, part.next) == (client.workers()[0].name, log.stat().st_size)
    following = subprocess.Popen(
        [*run(server, "--version").args[:1], "logs", "xi-tiny", "-f"], env=server.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert following.stdout is not None
        while following.stdout.readline() != "a line for the test\n":
            continue
        with log.open("a") as file:
            file.write("another\n")
        assert following.stdout.readline() == "another\n"
    finally:
        following.kill()
        following.communicate()


def test_a_drained_worker_and_its_return(server: RunningServer) -> None:
    (worker,) = server.client.workers()
    out(server, "drain", worker.name, "--timeout", "0")
    assert server.client.workers()[0].state == "draining"
    status = server.client.model("xi-tiny")
    assert status.state == "PENDING"
    assert "no worker is connected that may take replicas" in status.replicas[0].stage
    assert f"{worker.name}: is drained" in status.replicas[0].stage
    out(server, "drain", worker.name, "--undo")
    wait_until(lambda: ready(server) == 1, 30.0, "the replica to be back")


def test_stopping_all(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        server.client.launch("xi-tiny", model_engine="llama.cpp")
        asked = run(server, "stop-cluster", input="n\n")
        assert asked.returncode == 1
        assert "with 1 replica(s)?" in asked.stderr
        began = time.monotonic()
        out(server, "stop-cluster", "--yes")
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 30
