"""`xi pull` by a server: its workers download, without a launch. Against a stand-in for the hub."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from xi_core.api.pulls import PullOrder
from xi_core.errors import ArtifactError, Forbidden, InvalidRequest, NotFound, UnknownModel, WorkerNotFound
from xi_core.models.cache import MANIFEST, ModelCache
from xi_core.testing.hub_standin import Fault, HubModel, HubStandIn
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until

pytest.importorskip("huggingface_hub")

TINY = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families" / "xi_tiny" / "xi-tiny-f16.gguf"
ID = "people/tiny-GGUF"
FILE = f"/storage/{ID}/tiny-f16.gguf"
ORDER = PullOrder(model_name=ID, quantization="f16")


@pytest.fixture(scope="module")
def standin() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        yield hub


@pytest.fixture(scope="module")
def server(standin: HubStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    env = {"HF_ENDPOINT": standin.endpoint, "HF_HUB_DISABLE_XET": "1"}
    with RunningServer(tmp_path_factory.mktemp("home"), env=env) as server:
        yield server


@pytest.fixture
def hub(standin: HubStandIn, server: RunningServer) -> HubStandIn:
    """With one model, of which nothing is in the server's cache."""
    standin.resume.clear()
    standin.stalled.clear()
    standin.models = {ID: HubModel(files={"tiny-f16.gguf": TINY.read_bytes(), "tiny-q8_0.gguf": b"another" * 1000})}
    standin.faults, standin.asked = [], []
    if server.client.cached():
        server.client.remove_cached(ID)
    return standin


def test_a_server_pulls_and_tells_how_far_it_is(hub: HubStandIn, server: RunningServer, tmp_path: Path) -> None:
    hub.faults = [Fault(where=FILE, stall_after=200_000, times=100)]
    command = [str(Path(sys.executable).with_name("xi")), "pull", ID, "-q", "f16"]
    elsewhere = {**server.environment, "XI_HOME": str(tmp_path / "elsewhere")}
    with subprocess.Popen(command, env=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "downloading 1/1 tiny-f16.gguf" not in (line := process.stderr.readline()):
            assert line, "it ended"
        hub.resume.set()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    path = Path(out.strip())
    assert path.read_bytes() == TINY.read_bytes()
    assert path.is_relative_to(server.home), "it is in the server's cache, not in the command's"
    assert not (tmp_path / "elsewhere" / "models").exists()
    assert [one.model_name for one in server.client.cached()] == [ID]


def test_ctrl_c_ends_the_download_and_the_next_goes_on_with_it(hub: HubStandIn, server: RunningServer) -> None:
    hub.faults = [Fault(where=FILE, stall_after=200_000, times=100)]
    command = [str(Path(sys.executable).with_name("xi")), "pull", ID, "-q", "f16"]
    with subprocess.Popen(command, env=server.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "downloading 1/1 tiny-f16.gguf" not in (line := process.stderr.readline()):
            assert line, "it ended"
        assert hub.stalled.wait(30)
        cache = ModelCache(Path(server.environment["XI_HOME"]))
        partial = cache.root / "partial"
        wait_until(lambda: any(one.stat().st_size for one in partial.rglob("*") if one.is_file()), 30)  # sent isn't written
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode != 0
    with cache.held("huggingface", ID, lambda: None):  # the download that was ended has heard of it
        hub.resume.set()
    status = server.client.pull(ORDER)
    assert [one.state for one in status.workers] == ["DONE"]
    assert hub.gets(FILE)[-1].range, "it was gone on with"


def test_a_download_that_is_stopped_says_so(hub: HubStandIn, server: RunningServer) -> None:
    hub.faults = [Fault(where=FILE, stall_after=200_000, times=100)]
    status = server.client.start_pull(ORDER)
    assert hub.stalled.wait(30)
    wait_until(lambda: bool(server.client.pull_status(status.pull_id).workers[0].progress), 30, "progress")
    told = httpx.get(f"{server.endpoint}/v1/cache/pulls/{status.pull_id}", timeout=30).json()["workers"][0]["download"]
    [file] = told["files"]
    assert (file["name"], told["files_done"], told["files_total"]) == ("tiny-f16.gguf", 0, 1)
    for amount in (told, file):
        assert 0 < amount["done"] <= amount["total"] == TINY.stat().st_size
        assert amount["rate"] > 0
        assert amount["eta"] >= 0
    server.client.stop_pull(status.pull_id)
    wait_until(lambda: server.client.pull_status(status.pull_id).workers[0].state == "CANCELLED", 30, "the end")
    assert server.client.pull_status(status.pull_id).workers[0].download is None
    assert server.client.cached() == []


def test_what_fails_is_told_with_the_worker(hub: HubStandIn, server: RunningServer) -> None:
    with pytest.raises(ArtifactError, match=r"^\S+: there is no model 'people/nothing'"):
        server.client.pull(PullOrder(model_name="people/nothing", model_format="pytorch"))
    done = server.xi("pull", "people/nothing", "-f", "pytorch")
    assert done.returncode == 1
    assert "there is no model 'people/nothing'" in done.stderr


def test_what_cant_be_pulled_is_refused_before(hub: HubStandIn, server: RunningServer) -> None:
    client = server.client
    with pytest.raises(InvalidRequest, match="there is nothing to download"):
        client.start_pull(PullOrder(model_name="./somewhere.gguf"))
    with pytest.raises(InvalidRequest, match="comes in several kinds; say which"):
        client.start_pull(PullOrder(model_name="qwen2.5-instruct"))
    with pytest.raises(UnknownModel, match="nonesuch"):
        client.start_pull(PullOrder(model_name="nonesuch"))
    with pytest.raises(WorkerNotFound, match=r"no worker 'moon' is connected; connected: "):
        client.start_pull(PullOrder(model_name=ID, quantization="f16", worker_ip="moon"))
    with pytest.raises(Forbidden, match="XI_ALLOW_REMOTE_CODE=1"):
        client.start_pull(PullOrder(model_name=ID, quantization="f16", trust_remote_code=True))
    with pytest.raises(NotFound, match="knows a download 'none'"):
        client.pull_status("none")
    with pytest.raises(NotFound):
        client.stop_pull("none")
    answer = httpx.post(f"{server.endpoint}/v1/cache/models", json={"model_name": ID, "replica": 2}, timeout=30)
    assert answer.status_code == 400
    assert "replica" in answer.json()["error"]["message"]
    assert hub.asked == []


def test_what_is_damaged_or_came_in_part_is_removed(hub: HubStandIn, server: RunningServer) -> None:
    hub.faults = [Fault(where=FILE, cut_after=200_000), Fault(where=FILE, status=404)]
    with pytest.raises(ArtifactError):
        server.client.pull(ORDER)
    assert list(server.home.glob("models/partial/*/*/*"))
    assert server.client.cached() == []
    [found] = server.client.cached("tiny-gguf", incomplete=True)
    assert (found.model_name, found.complete, found.path) == (ID, False, str(next(server.home.glob("models/partial/*/*/*"))))
    assert found.size >= 200_000
    assert "not complete" in server.xi("cached").stdout
    assert server.client.remove_cached(ID) == found.size
    assert not list(server.home.glob("models/partial/*/*/*"))

    manifest = Path(str(server.client.pull(ORDER).workers[0].path)).with_name(MANIFEST)
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="xi remove-cache"):
        server.client.pull(ORDER)
    assert [one.complete for one in server.client.cached(incomplete=True)] == [False]
    with pytest.raises(NotFound):
        server.client.remove_cached(ID, revision="0123456")
    done = server.xi("remove-cache", ID, "--yes")
    assert "2.1 MB are free" in done.stderr
    assert Path(str(server.client.pull(ORDER).workers[0].path)).read_bytes() == TINY.read_bytes()


def test_a_worker_is_named(hub: HubStandIn, server: RunningServer) -> None:
    name = server.client.workers()[0].name
    done = server.xi("pull", ID, "-q", "f16", "--worker-ip", name)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "tiny-f16.gguf"
    vague = server.xi("pull", "qwen2.5-instruct")
    assert vague.returncode == 2
    assert "say which" in vague.stderr


def test_without_a_server_this_machine_downloads(hub: HubStandIn, server: RunningServer, tmp_path: Path) -> None:
    mine = {**server.environment, "XI_HOME": str(tmp_path / "mine")}
    command = [str(Path(sys.executable).with_name("xi")), "pull", ID, "-q", "f16"]
    for own, options in (({**mine, "XI_ENDPOINT": ""}, ()), (mine, ("--local",))):
        done = subprocess.run([*command, *options], env=own, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).is_relative_to(tmp_path / "mine")
    assert server.client.cached() == []
    done = subprocess.run([*command, "--local", "-e", server.endpoint], env=mine, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "leave out -e" in done.stderr


def test_no_server_at_the_endpoint_is_said(tmp_path: Path) -> None:
    environment = {**os.environ, "XI_HOME": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("xi")), "pull", ID, "-e", "http://127.0.0.1:1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
