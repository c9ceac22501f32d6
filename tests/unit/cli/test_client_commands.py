"""Commands that ask a server: list, terminate, engines; where they find it; how they fail."""

import json
import socket

import pytest

from xi_core.config import settings

MODEL = {
    "id": "xi-tiny", "object": "model", "created": 1, "owned_by": "xi", "model_name": "xi-tiny", "model_engine": "llama.cpp",
    "model_format": "ggufv2", "size_in_billions": "0.001", "quantization": "f16", "context_length": 512, "replica": 2, "ready_replicas": 2, "state": "READY",
}  # fmt: skip
ENGINE = {"name": "vllm", "available": False, "reason": "pip install 'xi-inference[vllm]'", "formats": ["pytorch"], "plugin": "engine-vllm"}
MODELS = ("GET", "/v1/models")


@pytest.fixture
def models(server):
    server.script[MODELS] = {"object": "list", "data": [MODEL]}
    return server


def test_list_draws_a_table_that_is_not_cut(xi, models):
    lines = xi("list").stdout.splitlines()
    assert lines[0].split() == ["UID", "STATE", "MODEL", "ENGINE", "FORMAT", "SIZE", "(B)", "QUANTIZATION", "REPLICAS", "CONTEXT"]
    assert lines[1].split() == ["xi-tiny", "READY", "xi-tiny", "llama.cpp", "ggufv2", "0.001", "f16", "2/2", "512"]


def test_list_json(xi, models):
    (shown,) = json.loads(xi("list", "--json").stdout)
    assert MODEL.items() <= shown.items()


def test_list_of_none(xi, server):
    server.script[MODELS] = {"object": "list", "data": []}
    result = xi("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "xi launch xi-tiny" in result.stderr


@pytest.mark.parametrize("args", [["xi-tiny"], ["-u", "xi-tiny"], ["--model-uid", "xi-tiny"]])
def test_terminate(xi, server, args):
    server.script["DELETE", "/v1/models/xi-tiny"] = {}
    assert xi("terminate", *args).stdout == "Terminated: xi-tiny\n"
    assert json.loads(xi("terminate", *args, "--json").stdout) == {"model_uid": "xi-tiny"}


def test_terminate_quotes_the_uid_and_shows_the_servers_error(xi, server, words):
    server.script["DELETE", "/v1/models/a%2Fb%3F"] = (404, words.error("no model 'a/b?'; models: none", "model_not_found"))
    result = xi("terminate", "a/b?")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: no model 'a/b?'; models: none\n")


def test_terminate_of_nothing(xi):
    assert xi("terminate").exit_code == 2


def test_engines(xi, server):
    server.script["GET", "/v1/engines"] = [ENGINE]
    server.script["GET", "/v1/engines?model=xi-tiny"] = [{**ENGINE, "model": "no such format"}]
    assert "pip install 'xi-inference[vllm]'" in xi("engines").stdout, "brackets must not be read as markup"
    assert "no such format" in xi("engines", "xi-tiny").stdout
    assert json.loads(xi("engines", "--json").stdout)[0]["name"] == "vllm"


def test_engines_local_asks_no_server(xi, server):
    result = xi("engines", "--local", "--json")
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), list)
    unknown = xi("engines", "--local", "no-such-model")
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("Error: unknown model 'no-such-model'; known: ")
    assert not server.seen


def test_engines_without_a_server_names_the_other_way(xi, monkeypatch):
    monkeypatch.delenv("XI_ENDPOINT")
    result = xi("-p", str(free_port()), "engines")
    assert result.exit_code == 1
    assert "xi engines --local" in result.stderr


# ---- endpoint and key ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_of(server):
    return server.url.rpartition(":")[2]


@pytest.mark.parametrize(
    ("args", "environment"),
    [
        (["list", "-e", "URL"], {}),
        (["list", "--endpoint", "URL/"], {}),
        (["list", "--endpoint", "URL/v1"], {"XI_ENDPOINT": "http://127.0.0.1:1"}),
        (["-p", "PORT", "list"], {"XI_ENDPOINT": "http://127.0.0.1:1"}),
        (["-H", "0.0.0.0", "-p", "PORT", "list"], {}),
        (["list"], {"XI_ENDPOINT": "URL"}),
        (["list"], {"XINFERENCE_ENDPOINT": "URL"}),
        (["list"], {"XI_PORT": "PORT"}),
    ],
)
def test_where_the_server_is(xi, models, monkeypatch, args, environment):
    def filled(text):
        return text.replace("URL", models.url).replace("PORT", port_of(models))

    monkeypatch.delenv("XI_ENDPOINT")
    for name, value in environment.items():
        monkeypatch.setenv(name, filled(value))
    result = xi(*(filled(arg) for arg in args))
    assert result.exit_code == 0, result.output
    assert len(models.seen) == 1


def test_the_key_by_option_and_environment(xi, models, monkeypatch):
    xi("list")
    monkeypatch.setenv("XI_API_KEY", "from-environment")
    xi("list")
    xi("list", "-ak", "from-option")
    assert [seen.authorization for seen in models.seen] == [None, "Bearer from-environment", "Bearer from-option"]


@pytest.mark.parametrize("bad", ["nonsense", "ftp://x", "http://", "http://h:99999", "http://[::1", "http://h/?q=1"])
def test_an_endpoint_that_cant_be(xi, bad):
    result = xi("list", "-e", bad)
    assert result.exit_code == 2
    assert "http://127.0.0.1:9997" in result.stderr


def test_an_unreachable_endpoint(xi, monkeypatch):
    monkeypatch.setattr("xi_cli.commands.launch.STARTING", 0.2)
    url = f"http://127.0.0.1:{free_port()}"
    for args in (["list"], ["launch", "xi-tiny"], ["terminate", "x"], ["chat", "x", "-p", "hi"], ["generate", "x", "-p", "hi"]):
        result = xi(*args, "-e", url)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"Error: no xi server answers at {url}: start one with `xi serve`, or name another with -e/--endpoint or XI_ENDPOINT\n"
        )


def test_another_service_at_the_endpoint(xi, server):
    server.script[MODELS] = {"detail": "something else"}
    result = xi("list")
    assert result.exit_code == 1
    assert "answers, but not as xi does" in result.stderr


def test_a_wrong_setting_is_named(xi, monkeypatch):
    monkeypatch.setenv("XI_PORT", "many")
    settings.cache_clear()
    result = xi("list")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: XI_PORT='many'")


def test_a_missing_key_says_where_commands_take_it_from(xi, server, words):
    server.script[MODELS] = (401, words.error("no API key", "invalid_api_key"))
    result = xi("list")
    assert (result.exit_code, result.stderr) == (1, "Error: no API key; commands take the key from -ak/--api-key or XI_API_KEY\n")
