"""`xi launch`: flags, pass-through, progress, ends, Ctrl-C."""

import json
import signal
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

READY = ("GET", "/v1/models/xi-tiny")
LAUNCH = ("POST", "/v1/models?wait_ready=false")
END = ("DELETE", "/v1/models/xi-tiny")


@pytest.fixture
def launched(server, words):
    server.script[LAUNCH] = {"model_uid": "xi-tiny"}
    server.script[READY] = words.status("READY", engine="llama.cpp")
    return server


def body(server):
    (call,) = server.calls(*LAUNCH)
    return call.body


def test_waits_until_ready_and_prints_the_uid_on_stdout(xi, launched, words):
    launched.script[READY] = words.Turns([
        words.status("PENDING"),
        words.status("LOADING", replicas=[words.replica("LOADING", "weights", 0.42)]),
        words.status("READY", engine="llama.cpp", replicas=[words.replica("READY")]),
    ])  # fmt: skip
    result = xi("launch", "xi-tiny")
    assert result.exit_code == 0, result.output
    assert result.stdout == "Model uid: xi-tiny\n"
    assert result.stderr.splitlines() == [
        "xi-tiny: PENDING", "xi-tiny-0: LOADING weights 40 %", "xi-tiny-0: READY", "xi-tiny: READY on llama.cpp. Talk with it: xi chat xi-tiny",
    ]  # fmt: skip
    assert body(launched) == {"model_name": "xi-tiny"}


def test_every_flag_in_both_forms(xi, launched):
    flags = [
        ("-n", "--model-name", "m"), ("-t", "--model-type", "LLM"), ("-en", "--model-engine", "llama.cpp"), ("-u", "--model-uid", "uid"),
        ("-s", "--size-in-billions", "0_5"), ("-f", "--model-format", "ggufv2"), ("-q", "--quantization", "q4"), ("-r", "--replica", "2"),
        ("--n-gpu", "--n-gpu", "none"), ("--gpu-idx", "--gpu-idx", "0,1"), ("-mp", "--model-path", "/nowhere/w"),
        ("--env", "--env", "A", "1"), ("--env", "--env", "B", "2"), ("--no-enable-thinking", "--no-enable-thinking"),
        ("--tool-parser", "--tool-parser", "hermes"), ("--reasoning-parser", "--reasoning-parser", "none"),
    ]  # fmt: skip
    short = [word for name, _, *values in flags for word in (name, *values)]
    long = [word for _, name, *values in flags for word in (name, *values)]
    for args in (short, long):
        assert xi("launch", *args, "--no-wait").exit_code == 0
    first, second = (call.body for call in launched.calls(*LAUNCH))
    assert first == second == {
        "model_name": "m", "model_engine": "llama.cpp", "model_uid": "uid", "size_in_billions": "0_5", "model_format": "ggufv2",
        "quantization": "q4", "replica": 2, "n_gpu": None, "gpu_idx": [0, 1], "model_path": "/nowhere/w", "envs": {"A": "1", "B": "2"},
        "enable_thinking": False, "tool_parser": "hermes", "reasoning_parser": "none",
    }  # fmt: skip


def test_unknown_options_go_to_the_engine_in_any_form(xi, launched):
    result = xi(
        "launch", "--gpu_memory_utilization", "0.9", "xi-tiny", "--tensor-parallel-size=2", "--enable-x", "-r", "3",
        "--rope", '{"a": [1]}', "--flag", "true", "--name", "text", "--offset", "-1", "--no-wait", "--last",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert body(launched) == {
        "model_name": "xi-tiny", "replica": 3, "gpu_memory_utilization": 0.9, "tensor_parallel_size": 2, "enable_x": True,
        "rope": {"a": [1]}, "flag": True, "name": "text", "offset": -1, "last": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no model: give its name"),
        (["--enable-x", "xi-tiny"], "no model: give its name before the engine's options"),
        (["a", "-n", "b"], "two models: 'a' and 'b'"),
        (["a", "-tp", "2"], "No such option: -tp"),
        (["a", "--x", "1", "--x", "2"], "--x is given twice"),
        (["a", "-r", "0"], "0 is not in the range"),
        (["a", "--n-gpu", "many"], "'many' is neither 'auto', 'none' nor a number"),
        (["a", "--gpu-idx", "x"], "'x' is no list of numbers"),
        (["./missing"], "there is no file or directory './missing'"),
        (["~nobody-of-this-name/m"], "there is no file or directory '~nobody-of-this-name/m'"),
        (["missing.gguf"], "there is no file or directory 'missing.gguf'"),
        (["a", "b"], "unexpected extra argument"),
        (["a", "-r"], "requires an argument"),
    ],
)
def test_usage_errors(xi, launched, args, message):
    result = xi("launch", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not launched.seen


@pytest.mark.parametrize("url", ["file:///m/model.gguf", "file:///m"])
def test_a_file_url_is_the_workers_to_read(xi, launched, url):
    assert xi("launch", url, "--model-path", url).exit_code == 0
    assert (body(launched)["model_name"], body(launched)["model_path"]) == (url, url)


def test_a_file_or_directory_is_made_absolute(xi, launched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").touch()
    Path("weights").mkdir()
    Path("xi-tiny").mkdir()
    Path("own").mkdir()
    Path("own/config.json").touch()
    for given in ("model.gguf", "./weights", "own", "xi-tiny"):
        assert xi("launch", given, "--no-wait").exit_code == 0
    names = [call.body["model_name"] for call in launched.calls(*LAUNCH)]
    assert names == [f"{tmp_path}/model.gguf", f"{tmp_path}/weights", f"{tmp_path}/own", "xi-tiny"]


def test_json(xi, launched):
    assert json.loads(xi("launch", "xi-tiny", "--json").stdout)["state"] == "READY"
    assert json.loads(xi("launch", "xi-tiny", "--json", "--no-wait").stdout) == {"model_uid": "xi-tiny"}


def test_failed_says_why_with_status_1(xi, launched, words):
    launched.script[READY] = words.status("FAILED", replicas=[words.replica("FAILED", error="tensor 'x' is damaged")])
    result = xi("launch", "xi-tiny")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-2:] == ["xi-tiny: FAILED", "Error: tensor 'x' is damaged"]


@pytest.mark.parametrize(
    ("code", "param", "args", "hint"),
    [
        ("unknown_option", "replcia", ["xi-tiny", "--replcia", "2"], "did you mean --replica?"),
        ("unknown_option", "zzz", ["xi-tiny", "--zzz", "2"], None),
        ("unknown_model", "model_name", ["folder"], "'folder' is a directory here: write ./folder to launch it"),
        ("unknown_engine", "model_engine", ["xi-tiny", "-en", "x"], None),
        ("engine_not_installed", "model_engine", ["xi-tiny", "-en", "vllm"], None),
        ("conflict", None, ["xi-tiny"], None),
    ],
)
def test_refusals_of_the_server(xi, server, words, tmp_path, monkeypatch, code, param, args, hint):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    server.script[LAUNCH] = (400, words.error("that is wrong", code, param))
    result = xi("launch", *args)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == f"Error: that is wrong{f'; {hint}' if hint else ''}\n"


def test_ctrl_c_cancels_the_launch(spawn, launched, words):
    launched.script[READY] = words.status("LOADING")
    launched.script[END] = {}
    process = spawn("launch", "xi-tiny")
    words.eventually(lambda: launched.calls(*READY))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert "The launch of xi-tiny is cancelled." in err
    assert "Traceback" not in err
    assert len(launched.calls(*END)) == 1


def test_ctrl_c_while_the_progress_bars_are_imported_cancels_the_launch(xi, launched, monkeypatch):
    class Slow(ModuleType):
        def __getattr__(self, name):
            if name == "LaunchProgress":
                raise KeyboardInterrupt
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, "xi_cli.progress", Slow("xi_cli.progress"))
    launched.script[END] = {}
    result = xi("launch", "xi-tiny")
    assert result.exit_code == 130
    assert "The launch of xi-tiny is cancelled." in result.stderr
    assert len(launched.calls(*END)) == 1


def test_ctrl_c_leaves_what_this_command_has_not_begun(spawn, launched, words):
    launched.script[LAUNCH] = {"model_uid": "xi-tiny", "existed": True}
    launched.script[READY] = words.status("LOADING")
    process = spawn("launch", "xi-tiny")
    words.eventually(lambda: launched.calls(*READY))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "xi-tiny goes on: it may have been launched before this command. To end it: xi terminate xi-tiny"
    assert launched.calls(*END) == []


def away(words, **fields):
    missing = {**words.replica("PENDING", "worker w1 is away"), "replica_id": "xi-tiny-1"}
    launched = words.status("PENDING", replicas=[words.replica("READY"), missing], stuck=True, **fields)
    return {**launched, "spec": {"model_name": "xi-tiny", "replica": 2}}


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"ready_replicas": 1}, "1 of 2 replicas serve"), ({"asleep_replicas": 1}, "0 of 2 replicas serve, 1 asleep")],
)
def test_what_serves_in_part_is_told_and_not_waited_for(xi, launched, words, fields, told):
    launched.script[READY] = away(words, **fields)
    result = xi("launch", "xi-tiny", "-r", "2")
    assert (result.exit_code, result.stdout) == (0, "Model uid: xi-tiny\n")
    assert result.stderr.splitlines()[-1] == f"xi-tiny is launched already; {told}: xi-tiny-1: worker w1 is away"
    assert json.loads(xi("launch", "xi-tiny", "-r", "2", "--json").stdout)["state"] == "PENDING"


def test_what_ends_again_and_again_is_not_waited_for_and_its_log_is_named(xi, launched, words):
    failing = {**words.replica("PENDING", "ends again and again", error="it ended with status 9"), "replica_id": "xi-tiny-1"}
    status = words.status("PENDING", replicas=[words.replica("READY"), failing], stuck=True, ready_replicas=1)
    launched.script[READY] = {**status, "spec": {"model_name": "xi-tiny", "replica": 2}}
    result = xi("launch", "xi-tiny", "-r", "2")
    assert (result.exit_code, result.stdout) == (0, "Model uid: xi-tiny\n")
    assert result.stderr.splitlines()[-2:] == [
        "xi-tiny is launched already; 1 of 2 replicas serve: xi-tiny-1: ends again and again: it ended with status 9",
        "What xi-tiny-1 wrote: xi logs xi-tiny --replica 1",
    ]


def test_launch_says_when_it_was_terminated_by_another(xi, launched, words):
    launched.script[READY] = (404, words.error("no model 'xi-tiny'", "model_not_found"))
    result = xi("launch", "xi-tiny")
    assert result.exit_code == 1
    assert "terminated before it was ready" in result.stderr


def test_signal_disposition_is_restored(xi, launched):
    before = signal.getsignal(signal.SIGINT)
    assert xi("launch", "xi-tiny").exit_code == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_waits_for_a_server_that_is_just_starting(xi):
    """`xi serve &` and `xi launch` at once: what listens half a second later is asked (and isn't xi, which the message says)."""
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        port = late.getsockname()[1]

        def serve():
            late.listen()
            for _ in range(2):  # the look whether something listens, and the request
                late.accept()[0].close()

        threading.Timer(0.5, serve).start()
        result = xi("launch", "xi-tiny", "-e", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert "no xi server answers" not in result.stderr


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_dry_run_that_finds_no_place_is_a_failure_in_either_form(xi, server, placed, option):
    candidates = [{"worker": "w1", "taken": placed, "reason": "it has no devices"}]
    server.script["POST", "/v1/placements"] = [{"placed": placed, "reason": "nothing fits", "candidates": candidates}]
    result = xi("launch", "xi-tiny", "--explain", *option)
    assert result.exit_code == (0 if placed else 1)
    assert ("Error: replica 1 of 1 would find no place: nothing fits" in result.stderr) is not placed
    assert "it has no devices" in result.stdout
    if option:
        assert json.loads(result.stdout)[0]["placed"] is placed
