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
    assert lines[0].split() == [
        "UID",
        "STATE",
        "MODEL",
        "ENGINE",
        "FORMAT",
        "SIZE",
        "(B)",
        "QUANTIZATION",
        "REPLICAS",
        "RESTARTS",
        "CONTEXT",
    ]
    assert lines[1].split() == ["xi-tiny", "READY", "xi-tiny", "llama.cpp", "ggufv2", "0.001", "f16", "2/2", "0", "512"]


def test_list_json(xi, models):
    (shown,) = json.loads(xi("list", "--json").stdout)
    assert MODEL.items() <= shown.items()


def test_list_says_below_why_a_launch_is_not_ready(xi, server, monkeypatch):
    why = "no worker has 1 device(s) to give; ask for fewer (w1: has no devices)\nand a second line of it"
    server.script[MODELS] = {"object": "list", "data": [MODEL, {**MODEL, "id": "big", "state": "PENDING", "detail": why}]}
    result = xi("list")
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr.splitlines() == [f"big: PENDING: {' '.join(why.split())}"]
    assert json.loads(xi("list", "--json").stdout)[1]["detail"] == why
    monkeypatch.setattr("xi_cli.commands.list.width", lambda: 40)
    assert xi("list").stderr.splitlines() == ["big: PENDING: no worker has 1 device(s)…"]


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


@pytest.mark.parametrize("args", [["logs"], ["terminate"], ["scale", "2"], ["sleep"], ["wake"]])
def test_a_hub_id_where_a_uid_is_wanted_is_told_so(xi, server, words, args):
    """The server reads the slash as one of the path, even quoted, and says that there is no such page."""
    command, *more = args
    result = xi(command, "Qwen/X", *more)
    (call,) = server.seen
    assert call.path.startswith("/v1/models/Qwen%2FX")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: no model 'Qwen/X': a launch is called by its uid, which has no '/'; `xi list` shows them\n"


def test_terminate_of_nothing(xi):
    assert xi("terminate").exit_code == 2


def test_engines(xi, server):
    server.script["GET", "/v1/engines"] = [ENGINE]
    assert "pip install 'xi-inference[vllm]'" in xi("engines").stdout, "brackets must not be read as markup"
    assert json.loads(xi("engines", "--json").stdout)[0]["name"] == "vllm"


def spec(model_format, size, quantization, runs, reason=""):
    return {"model_format": model_format, "model_size_in_billions": size, "quantization": quantization, "runs": runs, "reason": reason}


def test_engines_of_a_model_show_what_runs_and_why_the_rest_does_not(xi, server):
    specs = [
        *(spec("ggufv2", size, quantization, True) for size in ("0.5", "7") for quantization in ("q4_k_m", "q8_0")),
        spec("ggufv2", "72", "q2_k", True),
        *(spec(other, "7", "none", False, "no such format") for other in ("pytorch", "mlx")),
    ]
    query = "model=m&model_engine=llama.cpp&model_format=gguf&size_in_billions=0_5&quantization=q4&model_type=LLM"
    server.script["GET", f"/v1/engines?{query}"] = [{**ENGINE, "name": "llama.cpp", "specs": specs}]
    result = xi("engines", "-n", "m", "-en", "llama.cpp", "-f", "gguf", "-s", "0_5", "-q", "q4", "-t", "LLM")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert rows == [
        "ENGINE RUNS FORMAT SIZES (B) QUANTIZATIONS DETAIL",
        "llama.cpp yes ggufv2 0.5, 7 q4_k_m, q8_0 -",
        "llama.cpp yes ggufv2 72 q2_k -",
        "llama.cpp no pytorch, mlx 7 none no such format",
    ]
    assert xi("engines", "-f", "gguf").exit_code == 2, "of which model?"
    assert xi("engines", "a", "-n", "b").exit_code == 2


def test_engines_local_knows_the_families(xi, server):
    result = xi("engines", "--local", "qwen2.5-instruct", "-s", "0_5", "-f", "gguf", "-en", "llama.cpp", "--json")
    (engine,) = json.loads(result.stdout)
    assert {(one["model_format"], one["model_size_in_billions"]) for one in engine["specs"]} == {("ggufv2", "0.5")}
    assert "of type embedding, not LLM" in xi("engines", "--local", "bge-m3", "-t", "LLM").stderr
    assert not server.seen


REGISTERED = {"model_name": "mine", "model_type": "LLM", "is_builtin": False, "persistent": False, "formats": ["pytorch"], "sizes": ["7"]}
OF_LLM = "/v1/model_registrations/LLM"


def test_registrations(xi, server):
    server.script["GET", "/v1/model_registrations"] = [REGISTERED]
    server.script["GET", OF_LLM] = [{**REGISTERED, "is_builtin": True}]
    assert xi("registrations").stdout.splitlines()[1].split() == ["mine", "LLM", "no,", "not", "kept", "-", "pytorch", "7", "-"]
    assert xi("registrations", "-t", "LLM").stdout.splitlines()[1].split()[2] == "yes"
    assert json.loads(xi("registrations", "--json").stdout)[0]["model_name"] == "mine"


def test_vllm_models_say_where_vllm_is_missing(xi, server):
    server.script["GET", "/v1/model_registrations?engine=vLLM"] = [REGISTERED]
    server.script["GET", "/v1/engines"] = [{**ENGINE, "name": "vLLM"}]
    result = xi("vllm-models")
    assert "mine" in result.stdout
    assert result.stderr == "vLLM doesn't run here: pip install 'xi-inference[vllm]'\n"


def test_register_sends_the_file_under_its_type(xi, server, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"name": "mine", "model_type": "rerank", "path": "/é"}', encoding="utf-8")
    answer = {"model_name": "mine", "model_type": "rerank", "notes": ["stop is not used"]}
    server.script["POST", "/v1/model_registrations/rerank"] = answer
    result = xi("register", "-f", str(file), "--no-persist")
    assert (result.stdout, result.stderr) == ("Registered: mine\n", "Note: stop is not used\n")
    assert server.seen[-1].body == {"model": file.read_text(encoding="utf-8"), "persist": False}


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff{", b"x" * (1024 * 1024 + 1)])
def test_register_of_what_is_no_text(xi, server, tmp_path, content):
    file = tmp_path / "mine.json"
    file.write_bytes(content)
    result = xi("register", "-f", str(file))
    assert (result.exit_code, "'-f'" in result.stderr) == (2, True)
    assert not server.seen


def test_what_is_wrong_with_a_file_the_server_says(xi, server, tmp_path, words):
    file = tmp_path / "mine.json"
    file.write_text("{oops")
    server.script["POST", OF_LLM] = (400, words.error("the family is not valid JSON (line 1, column 2)", "invalid_request"))
    result = xi("register", "-f", str(file))
    assert (result.exit_code, result.stderr) == (1, "Error: the family is not valid JSON (line 1, column 2)\n")
    assert xi("register", "-f", str(tmp_path / "nothing")).exit_code == 2


def test_unregister(xi, server):
    server.script["DELETE", f"{OF_LLM}/mine"] = {}
    assert xi("unregister", "-n", "mine").stdout == "Unregistered: mine\n"
    assert json.loads(xi("unregister", "mine", "--json").stdout) == {"model_name": "mine"}
    assert xi("unregister").exit_code == 2


def test_engines_local_asks_no_server(xi, server):
    result = xi("engines", "--local", "--json")
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), list)
    unknown = xi("engines", "--local", "no-such-model")
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("Error: unknown model 'no-such-model'; known models: ")
    assert not server.seen


def test_engines_local_with_a_server_is_refused(xi, server):
    result = xi("engines", "--local", "-e", server.url)
    assert result.exit_code == 2
    assert "--local looks at this environment: leave out -e" in result.stderr
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


@pytest.mark.parametrize(("args", "words"), [(("stop-cluster",), "nothing was stopped"), (("remove-cache", "m"), "nothing was deleted")])
def test_a_question_that_is_not_answered_with_yes(xi, server, args, words):
    """It is a failure, told in words, and no Ctrl-C, which ends with status 130."""
    server.script["GET", "/v1/workers"] = []
    server.script["GET", "/v1/cache/models?model_name=m&incomplete=true"] = {"list": []}
    no, nobody = xi(*args, stdin="n\n"), xi(*args, stdin="")
    assert (no.exit_code, no.stderr.splitlines()[-1]) == (1, f"Error: {words}")
    assert (nobody.exit_code, nobody.stderr.splitlines()[-1]) == (1, f"Error: {words}: nobody answered; --yes doesn't ask")
    assert {seen.method for seen in server.seen} == {"GET"}


def test_cluster(xi, server):
    gib = 2**30
    device = {"id": "cuda:0", "kind": "cuda", "name": "H100", "memory": 80 * gib, "memory_free": 20 * gib, "utilisation": 0.5}
    known = {"name": "w1", "address": "a", "state": "ready", "version": "1", "cpus": 2, "memory": 3 * gib // 2, "devices": [device]}
    server.script["GET", "/v1/workers"] = [known, {"name": "w2", "address": "b", "state": "away"}]
    result = xi("cluster")
    assert result.exit_code == 0, result.stderr
    head, *rows = (line.split() for line in result.stdout.splitlines())
    assert head[5:7] == ["DEVICE", "MEMORY"]
    assert [" ".join(row) for row in rows] == [
        "w1 ready a 1 2 CPU 1.5 GiB - 0",
        "- - - - - cuda:0 H100 20.0 of 80.0 GiB free 50% 0",
        "w2 away b - - CPU - - 0",
    ]


def test_cluster_shows_the_plugins_of_each_worker(xi, server):
    known = {"name": "w1", "address": "a", "state": "ready", "version": "1", "plugins": {"engine-vllm": "1.2", "devices": "1"}}
    server.script["GET", "/v1/workers"] = [
        {**known, "differences": ["lacks the plugin x 1"]},
        {"name": "w2", "address": "b", "state": "away"},
    ]
    assert "vllm" not in xi("cluster").stdout
    assert xi("cluster").stderr.splitlines() == ["w1: lacks the plugin x 1"]
    result = xi("cluster", "-v")
    assert [line.split() for line in result.stdout.splitlines()[-3:]] == [
        ["WORKER", "PLUGIN", "VERSION"], ["w1", "devices", "1"], ["w1", "engine-vllm", "1.2"],
    ]  # fmt: skip
    assert result.stderr.splitlines() == ["w1: lacks the plugin x 1"]
    assert json.loads(xi("cluster", "--json").stdout)[0]["plugins"] == {"engine-vllm": "1.2", "devices": "1"}


def test_cluster_members(xi, server):
    server.script["GET", "/v1/cluster/members"] = [
        {"name": "w1", "role": "worker", "joined": 1e9, "linked": True},
        {"name": "g1", "role": "gateway", "joined": 1e9, "linked": False},
    ]
    result = xi("cluster", "members")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["NAME", "ROLE", "JOINED", "CONNECTED"]
    assert [(row[0], row[1], row[-1]) for row in rows[1:]] == [("w1", "worker", "yes"), ("g1", "gateway", "no")]
    assert '"linked": true' in xi("cluster", "members", "--json").stdout
    server.script["GET", "/v1/cluster/members"] = []
    assert "Nobody has joined" in xi("cluster", "members").stderr


@pytest.mark.parametrize("option", [("-e", "http://10.0.0.5:9997"), ("-ak", "key"), ("--json",)])
def test_options_before_a_command_of_cluster_are_not_lost(xi, server, option):
    result = xi("cluster", *option, "remove", "w1")
    assert result.exit_code == 2
    assert "options go behind the command: xi cluster remove [OPTIONS]" in result.stderr
    assert server.seen == []


def test_cluster_remove(xi, server):
    server.script["DELETE", "/v1/cluster/members/w1?role=worker&force=true"] = {"name": "w1", "role": "worker", "replicas": ["a-0", "b-1"]}
    result = xi("cluster", "remove", "w1", "--role", "worker", "--force")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "Removed: worker w1\nStarted elsewhere, as far as there is room: a-0, b-1\n"
    server.script["DELETE", "/v1/cluster/members/g1"] = {"name": "g1", "role": "gateway", "replicas": ["a-0"]}
    assert "open to the older keys until they are started anew" in xi("cluster", "remove", "g1").stderr
    result = xi("cluster", "remove", "g1", "--json")
    assert (json.loads(result.stdout), result.stderr) == ({"name": "g1", "role": "gateway", "replicas": ["a-0"]}, "")


def test_cluster_rotate_gateway_keys(xi, server):
    server.script["POST", "/v1/cluster/gateway-keys"] = {"replicas": []}
    result = xi("cluster", "rotate-gateway-keys")
    assert (result.exit_code, "Gateways have new keys" in result.stderr, "older" in result.stderr) == (0, True, False)
    result = xi("cluster", "rotate-gateway-keys", "--json")
    assert (json.loads(result.stdout), result.stderr) == ({"replicas": []}, "")
