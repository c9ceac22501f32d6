"""Models from a hub, through the CLI and HTTP: launch, pull, cached, remove-cache, against a stand-in for the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from xi_core.api.transfer import FileTransfer
from xi_core.testing.hub_standin import Fault, HubModel, HubStandIn
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until

pytest.importorskip("huggingface_hub")
pytest.importorskip("xllamacpp")

TINY = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families" / "xi_tiny" / "xi-tiny-f16.gguf"
ID = "people/tiny-GGUF"


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as hub:
        hub.models[ID] = HubModel(files={"tiny-f16.gguf": TINY.read_bytes(), "tiny-q8_0.gguf": b"another" * 1000})
        yield hub


@pytest.fixture
def server(hub: HubStandIn, tmp_path: Path) -> Iterator[RunningServer]:
    env = {"HF_ENDPOINT": hub.endpoint, "MODELSCOPE_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    with RunningServer(tmp_path / "home", env=env) as server:
        yield server


def xi(server: RunningServer, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("xi")), *arguments]
    return subprocess.run(command, env={**server.environment, **more}, capture_output=True, text=True, timeout=100, check=False)


def test_a_model_is_launched_from_a_hub_and_again_without_it(hub: HubStandIn, server: RunningServer) -> None:
    launched = xi(server, "launch", ID, "-q", "f16", "-u", "tiny", "--source", "modelscope")
    assert launched.returncode == 0, launched.stderr
    assert hub.gets("FilePath=tiny-f16.gguf")
    assert not hub.gets("FilePath=tiny-q8_0.gguf")
    shown = json.loads(xi(server, "cached", "--json").stdout)
    assert [(one["model_name"], one["source"], one["files"], one["size"]) for one in shown] == [(ID, "modelscope", 1, TINY.stat().st_size)]

    refused = httpx.request("DELETE", f"{server.endpoint}/v1/cache/models", params={"model_name": ID}, timeout=30)
    assert refused.status_code == 409
    assert "tiny-0" in refused.json()["error"]["message"]

    hub.stop()
    count = len(hub.asked)
    assert xi(server, "terminate", "tiny").returncode == 0
    again = xi(server, "launch", ID, "-q", "f16", "-u", "tiny", "--source", "modelscope")
    assert again.returncode == 0, again.stderr
    assert len(hub.asked) == count

    assert xi(server, "terminate", "tiny").returncode == 0
    file = Path(shown[0]["path"]) / "tiny-f16.gguf"
    file.chmod(0o644)
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)
    damaged = xi(server, "launch", ID, "-q", "f16", "-u", "tiny", "--source", "modelscope")
    assert damaged.returncode == 1
    assert "tiny-f16.gguf is damaged" in damaged.stderr

    removed = xi(server, "remove-cache", "-n", ID, "--yes")
    assert removed.returncode == 0, removed.stderr
    assert json.loads(xi(server, "cached", "--json").stdout) == []
    missing = xi(server, "remove-cache", "-n", ID, "--yes")
    assert missing.returncode == 1
    assert "is not in the cache" in missing.stderr


def test_what_was_pulled_is_launched_without_the_hub(hub: HubStandIn, server: RunningServer) -> None:
    vague = xi(server, "pull", ID)
    assert vague.returncode == 1
    assert "say which by its quantization (-q)" in vague.stderr
    pulled = xi(server, "pull", ID, "-q", "f16", "--local")
    assert pulled.returncode == 0, pulled.stderr
    assert Path(pulled.stdout.strip()).name == "tiny-f16.gguf"
    assert "downloading 1/1 tiny-f16.gguf" in pulled.stderr
    hub.stop()
    launched = xi(server, "launch", ID, "-q", "f16", "-u", "tiny")
    assert launched.returncode == 0, launched.stderr


def coming(server: RunningServer) -> list[FileTransfer]:
    """The files that a launch waits for."""
    download = server.client.model("tiny").replicas[0].download
    return download.files if download is not None else []


def test_the_clients_field_chooses_the_source_and_progress_is_told(hub: HubStandIn, server: RunningServer) -> None:
    hub.faults = [Fault(where="FilePath=tiny-f16.gguf", stall_after=200_000)]
    body = {"model_name": ID, "quantization": "f16", "model_uid": "tiny", "download_hub": "modelscope"}
    answer = httpx.post(f"{server.endpoint}/v1/models", params={"wait_ready": "false"}, json=body, timeout=60)
    assert answer.is_success, answer.text
    assert hub.stalled.wait(30)
    wait_until(lambda: "downloading 1/1 tiny-f16.gguf" in server.client.model("tiny").replicas[0].stage, 30, "progress")
    wait_until(lambda: any(file.done for file in coming(server)), 30, "bytes")
    [file] = coming(server)
    assert (file.name, file.total) == ("tiny-f16.gguf", TINY.stat().st_size)
    assert 0 < file.done <= file.total
    assert file.rate > 0
    assert file.eta is not None
    server.client.terminate("tiny")
    assert server.client.cached() == []
    again = xi(server, "launch", ID, "-q", "f16", "-u", "tiny", "--source", "modelscope")
    assert again.returncode == 0, again.stderr
    assert hub.gets("FilePath=tiny-f16.gguf")[-1].range, "it was gone on with"


def test_sources_that_arent_there_are_said(hub: HubStandIn, server: RunningServer) -> None:
    unknown = xi(server, "launch", ID, "--source", "nowhere")
    assert unknown.returncode == 1
    assert "unknown model source 'nowhere'; known: " in unknown.stderr
    assert "modelscope" in unknown.stderr
    elsewhere = xi(server, "launch", "xi-tiny", "--source", "modelscope")
    assert elsewhere.returncode == 1
    assert "it is at: builtin" in elsewhere.stderr


def test_a_download_that_fails_fails_the_launch_with_the_reason(hub: HubStandIn, server: RunningServer) -> None:
    failed = xi(server, "launch", "people/nothing", "-f", "pytorch", "-en", "transformers")
    assert failed.returncode == 1
    assert "there is no model 'people/nothing' at Hugging Face" in failed.stderr


def test_pull_without_the_library_says_how_to_get_it(hub: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('not here')\n")
    environment = {**os.environ, "XI_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("xi")), "pull", ID, "-q", "f16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "pip install 'xi-inference[huggingface]'" in done.stderr
