"""Wrong input, end to end: the thing is named, the message says what to do, no traceback is shown, and the server goes on."""

import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.testing.server import RunningServer

FAMILIES = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families"
GGUF = FAMILIES / "xi_tiny" / "xi-tiny-f16.gguf"
HF = FAMILIES / "xi_tiny" / "hf"

PLUGINS = {
    "broken": "raise RuntimeError('this plugin is broken')\n",
    "absent": """
from xi_core.engine.info import EngineInfo, Support
from xi_core.hookspecs import hookimpl
from xi_core.wire.manifest import Manifest

def no(*_):
    return Support(ok=False, reason="libabsent is not installed; pip install libabsent")

@hookimpl
def xi_engines():
    return [EngineInfo(name="absent", engine="nowhere:Engine", formats=("ggufv2",), manifest=Manifest(), probe=no, match=no)]
""",
    "clash": """
from xi_core.cluster.routing import RouterInfo
from xi_core.hookspecs import hookimpl

@hookimpl
def xi_routers():
    return [RouterInfo(name="least_loaded", router="x:Y")]
""",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three installed plugins: one that breaks at import, one without its library, one that takes a built-in's name."""
    folder = tmp_path_factory.mktemp("installed")
    for name, code in PLUGINS.items():
        (folder / f"xi_{name}.py").write_text(code)
        info = folder / f"xi_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: xi-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[xi]\n{name} = xi_{name}\n")
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("here"), env={"PYTHONPATH": str(installed)}) as server:
        assert server.xi("launch", "xi-tiny").returncode == 0
        yield server


@pytest.fixture(autouse=True)
def _goes_on(here: RunningServer) -> Iterator[None]:
    """Whatever a test sends, the model answers afterwards."""
    yield
    answer: Any = here.client.chat("xi-tiny", [{"role": "user", "content": "What is 1 + 1?"}], temperature=0)
    assert "2" in answer.choices[0].message.content


def post(server: RunningServer, body: Any, path: str = "/v1/chat/completions") -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", path, data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found["error"]


def refused(server: RunningServer, *arguments: str, status: int = 1) -> str:
    """The command's message. It is short: an error, not a traceback."""
    done = server.xi(*arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stdout == ""
    return " ".join(done.stderr.split())


# ---- launching ------------------------------------------------------------------------------------


def test_unknown_model(here: RunningServer) -> None:
    message = refused(here, "launch", "xi-tinny")
    assert "xi-tinny" in message
    assert "xi-tiny" in message.replace("xi-tinny", "")


def test_unknown_engine(here: RunningServer) -> None:
    message = refused(here, "launch", "xi-tiny", "-u", "other", "-en", "lama.cpp")
    assert "llama.cpp" in message
    assert "transformers" in message


@pytest.mark.parametrize(("engine", "known"), [("llama.cpp", "context_length"), ("transformers", "dtype")])
def test_unknown_option(here: RunningServer, engine: str, known: str) -> None:
    message = refused(here, "launch", "xi-tiny", "-u", "other", "-en", engine, "--frobnicate", "3")
    assert "frobnicate" in message
    assert known in message


@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_option_with_a_wrong_value(here: RunningServer, engine: str) -> None:
    assert "context_length" in refused(here, "launch", "xi-tiny", "-u", "other", "-en", engine, "--context_length", "many")


@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_option_that_only_the_model_can_refuse(here: RunningServer, engine: str) -> None:
    """The replica finds it out; the answer is still the caller's mistake, not the server's."""
    body = {"model_name": "xi-tiny", "model_uid": "too-long", "model_engine": engine, "context_length": 100_000}
    status, error = post(here, body, "/v1/models")
    assert (status, error["code"]) == (400, "unknown_option")
    assert "100000" in error["message"]
    here.xi("terminate", "too-long")


def test_engine_not_installed(here: RunningServer) -> None:
    assert "pip install libabsent" in refused(here, "launch", "xi-tiny", "-u", "other", "-en", "absent")
    assert "pip install libabsent" in here.xi("engines").stdout.replace("\n", " ")


def test_a_format_that_the_engine_does_not_take(here: RunningServer) -> None:
    message = refused(here, "launch", "xi-tiny", "-u", "other", "-en", "transformers", "-f", "ggufv2")
    assert "ggufv2" in message


def test_a_size_that_there_is_not(here: RunningServer) -> None:
    assert "0.001" in refused(here, "launch", "xi-tiny", "-u", "other", "-s", "7")


def test_another_spec_under_the_same_name(here: RunningServer) -> None:
    message = refused(here, "launch", "xi-tiny", "--replica", "2")
    assert "xi-tiny" in message
    assert here.xi("launch", "xi-tiny").returncode == 0, "the same spec is the same launch"


def damaged_gguf(folder: Path) -> Path:
    path = folder / "damaged.gguf"
    path.write_bytes(GGUF.read_bytes()[:100_000])
    return path


def not_a_gguf(folder: Path) -> Path:
    path = folder / "letter.gguf"
    path.write_text("Dear reader")
    return path


def damaged_safetensors(folder: Path) -> Path:
    shutil.copytree(HF, folder / "damaged")
    weights = folder / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder / "damaged"


def without_weights(folder: Path) -> Path:
    shutil.copytree(HF, folder / "bare")
    (folder / "bare" / "model.safetensors").unlink()
    return folder / "bare"


def of_an_unknown_kind(folder: Path) -> Path:
    shutil.copytree(HF, folder / "strange")
    config = folder / "strange" / "config.json"
    config.write_text(config.read_text().replace('"qwen2"', '"qwen99"').replace("Qwen2ForCausalLM", "Qwen99ForCausalLM"))
    return folder / "strange"


@pytest.mark.parametrize("make", [damaged_gguf, not_a_gguf, damaged_safetensors, without_weights, of_an_unknown_kind])
def test_a_checkpoint_that_can_not_be_loaded(here: RunningServer, tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    message = refused(here, "launch", str(path))
    assert path.name in message or "qwen99" in message.lower()
    assert len(message) < 2000
    here.xi("terminate", path.stem)


def test_a_path_that_there_is_not(here: RunningServer) -> None:
    assert "no-such.gguf" in refused(here, "launch", "./no-such.gguf", status=2)


@pytest.mark.parametrize(("name", "value"), [("LD_PRELOAD", "x.so"), ("PATH", "/tmp"), ("1BAD", "x"), ("HTTPS_PROXY", "x")])
def test_environment_that_is_refused(here: RunningServer, name: str, value: str) -> None:
    assert name in refused(here, "launch", "xi-tiny", "-u", "other", "--env", name, value)


# ---- servers and plugins ------------------------------------------------------------------------


def test_port_in_use(here: RunningServer) -> None:
    message = refused(here, "serve", "--port", str(here.port))
    assert str(here.port) in message


def test_off_loopback_wants_a_key(here: RunningServer) -> None:
    assert "XI_API_KEY" in refused(here, "serve", "--host", "0.0.0.0", "--port", "0", status=2)


def test_unreachable_endpoint(here: RunningServer) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
        for command in (["list"], ["launch", "xi-tiny"], ["chat", "xi-tiny", "--prompt", "Hi"], ["terminate", "xi-tiny"]):
            message = refused(here, *command, "-e", endpoint)
            assert endpoint in message
            assert "xi serve" in message


def test_a_broken_plugin_is_shown_and_harms_nothing(here: RunningServer) -> None:
    shown = json.loads(here.xi("plugins", "--json").stdout)
    states = {plugin["name"]: plugin["state"] for plugin in shown}
    assert (states["broken"], states["clash"], states["absent"]) == ("quarantined", "quarantined", "loaded")
    verbose = here.xi("-v", "plugins")
    trace = verbose.stdout + verbose.stderr
    assert "RuntimeError: this plugin is broken" in trace
    assert "least_loaded" in trace


# ---- requests -----------------------------------------------------------------------------------

HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b'{"model": "xi-tiny", "messages": [', 400, None, "invalid_request"),
        (b"", 400, None, "invalid_request"),
        (b"[1, 2]", 400, None, "invalid_request"),
        ({"messages": HI}, 400, "model", "invalid_request"),
        ({"model": 5, "messages": HI}, 400, "model", "invalid_request"),
        ({"model": "nobody", "messages": HI}, 404, "model", "model_not_found"),
        ({"model": "xi-tiny"}, 400, "messages", "invalid_request"),
        ({"model": "xi-tiny", "messages": HI, "temperature": 9}, 400, "temperature", "invalid_request"),
        ({"model": "xi-tiny", "messages": HI, "max_tokens": 0}, 400, "max_tokens", "invalid_request"),
        ({"model": "xi-tiny", "messages": HI, "stream": "yes"}, 400, "stream", "invalid_request"),
        ({"model": "xi-tiny", "messages": HI, "best_of": 3}, 400, "best_of", "invalid_request"),
        ({"model": "xi-tiny", "messages": [{"role": "user", "content": "long " * 3000}]}, 400, "messages", "context_length_exceeded"),
    ],
)
def test_requests(here: RunningServer, body: Any, status: int, param: str | None, code: str) -> None:
    got, error = post(here, body)
    assert (got, error["param"], error["code"]) == (status, param, code)
    assert error["type"]
    assert error["message"]


def test_a_field_that_the_engine_can_not_honour(here: RunningServer) -> None:
    status, error = post(here, {"model": "xi-tiny", "prompt": "x", "echo": True}, "/v1/completions")
    assert (status, error["param"], error["code"]) == (400, "echo", "unsupported_field")
    assert "llama.cpp" in error["message"]


def test_other_routes(here: RunningServer) -> None:
    status, error = post(here, {}, "/v1/no-such-route")
    assert status == 404
    assert "/v1/no-such-route" in error["message"]
    assert post(here, {"model_name": "xi-tiny", "replica": "many"}, "/v1/models")[1]["param"] == "replica"
    assert post(here, {"model_name": "xi-tiny", "replica": 0}, "/v1/models")[1]["param"] == "replica"
    assert post(here, b"{", "/v1/models")[0] == 400
