"""Models that people register: over REST as Xinference's client does it, by commands, and what a supervisor's restart leaves of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from xinference_client import RESTfulClient

from xi_core.client import Client
from xi_core.errors import Conflict, InvalidRequest, NotFound, XiError
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until

TINY = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families" / "xi_tiny"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("registrations")) as running:
        yield running


def custom(name: str) -> str:
    """A custom model in Xinference's form, of files that are here."""
    spec = {"model_format": "ggufv2", "model_size_in_billions": "0_001", "quantization": "f16", "model_uri": str(TINY / "xi-tiny-f16.gguf")}
    return json.dumps({"version": 2, "context_length": 1024, "model_name": name, "model_ability": ["chat"], "model_specs": [spec]})


def theirs(server: RunningServer) -> Any:
    """Xinference's client, which has no types."""
    make: Any = RESTfulClient
    return make(server.endpoint)


def names(client: Any, model_type: str = "LLM") -> dict[str, bool]:
    return {one["model_name"]: one["is_builtin"] for one in client.list_model_registrations(model_type)}


def test_xinferences_client_registers_launches_and_unregisters(server: RunningServer) -> None:
    client = theirs(server)
    assert names(client)["xi-tiny"] is True
    assert {"bge-m3": True}.items() <= names(client, "embedding").items()
    client.register_model("LLM", custom("theirs"), persist=True)
    assert names(client)["theirs"] is False
    described = client.get_model_registration("LLM", "theirs")
    assert (described["model_specs"][0]["model_format"], described["context_length"]) == ("ggufv2", 1024)
    uid = client.launch_model(model_name="theirs", model_engine="llama.cpp", model_uid="theirs-1")
    answer = client.get_model(uid).chat(messages=[{"role": "user", "content": "What is xi?"}], generate_config={"temperature": 0})
    assert answer["choices"][0]["message"]["content"]
    client.terminate_model(uid)
    client.unregister_model("LLM", "theirs")
    assert "theirs" not in names(client)
    for call in (lambda: client.unregister_model("LLM", "xi-tiny"), lambda: client.register_model("LLM", custom("xi-tiny"), persist=True)):
        with pytest.raises(RuntimeError, match="built"):
            call()


def test_engines_in_xinferences_shape(server: RunningServer) -> None:
    client = theirs(server)
    found = client.query_engine_by_model_name("xi-tiny")
    assert found["llama.cpp"] == [
        {"model_name": "xi-tiny", "model_format": "ggufv2", "model_size_in_billions": "0_001", "quantizations": ["f16"]}
    ]
    assert "format" in httpx.get(f"{server.endpoint}/v1/engines/bge-small-en-v1.5").json()["llama.cpp"]
    supported = httpx.get(f"{server.endpoint}/v1/models/vllm-supported").json()
    assert ("qwen2.5-instruct" in supported["chat"], "opt" in supported["generate"]) == (True, True)
    wrong = httpx.get(f"{server.endpoint}/v1/engines/LLM/bge-m3")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "model_type")
    assert httpx.get(f"{server.endpoint}/v1/engines?model_format=mlx").json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("LLM", {"model": '{"a" 1}'}, 400, "line 1, column 6"),
        ("LLM", {"model": '{"name": "../x", "path": "/x"}'}, 400, "line 1: name"),
        ("LLM", {"model": '{"name": "x",\n "pth": "/x"}'}, 400, "line 2: pth: unknown field 'pth'; did you mean 'path'?"),
        ("LLM", {"model": '{"name": "x", "path": "/x", "model_type": "rerank"}'}, 400, "registered as LLM"),
        ("LLM", {"model": "{}", "worker_ip": "10.0.0.1"}, 400, "worker_ip"),
        ("LLM", {"persist": True}, 400, "model"),
        ("image", {"model": "{}"}, 400, "model_type: 'image' is not served"),
        ("LLM", {"model": '{"name": "XI-tiny", "path": "/x"}'}, 409, "taken by the built-in model 'xi-tiny'"),
    ],
)
def test_what_is_refused(server: RunningServer, path: str, body: dict[str, Any], status: int, words: str) -> None:
    answer = httpx.post(f"{server.endpoint}/v1/model_registrations/{path}", json=body)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def test_what_is_not_there(server: RunningServer) -> None:
    for name in ("nothing", "..%2Fx", "bge-m3"):
        for method in ("GET", "DELETE"):
            assert httpx.request(method, f"{server.endpoint}/v1/model_registrations/LLM/{name}").status_code == 404, (method, name)


def test_a_launch_that_no_engine_can_run_lists_the_reasons(server: RunningServer) -> None:
    with pytest.raises(XiError, match=r"no engine that is installed takes .*vLLM") as caught:
        server.client.launch("qwen2.5-instruct", model_format="awq", size_in_billions="0_5")
    assert "transformers: quantized by awq: gptqmodel is not installed; install it with: pip install 'gptqmodel" in caught.value.message


def test_registrations_outlive_their_supervisor(server: RunningServer) -> None:
    client = server.client
    client.register("LLM", json.dumps({"name": "kept", "path": (TINY / "hf").as_uri()}))
    client.register("LLM", json.dumps({"name": "passing", "path": str(TINY / "hf")}), persist=False)
    with pytest.raises(Conflict, match="registered already"):
        client.register("LLM", json.dumps({"name": "KEPT", "path": "/x"}))
    (pid,) = [p.pid for p in client.cluster().processes if p.role == "supervisor"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _supervisor(client) not in (None, pid), 30.0, "another supervisor")
    found = {one.model_name: one for one in client.registrations("LLM")}
    assert "kept" in found
    assert "passing" not in found
    wait_until(lambda: _workers(client) > 0, 30.0, "the worker to come back")
    status = client.launch("kept", model_uid="kept-1")
    assert (status.engine, status.model_format) == ("transformers", "pytorch")
    client.terminate("kept-1")
    client.unregister("LLM", "kept")
    with pytest.raises(NotFound):
        client.registration("LLM", "kept")
    with pytest.raises(InvalidRequest, match="not served"):
        client.registrations("image")


def _supervisor(client: Client) -> int | None:
    try:
        return next((p.pid for p in client.cluster().processes if p.role == "supervisor"), None)
    except XiError:
        return None


def _workers(client: Client) -> int:
    return sum(process.role == "worker" for process in client.cluster().processes)
