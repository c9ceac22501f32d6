"""The start of `xi` as a process: streams that are closed, Ctrl-C before anything runs, input that isn't UTF-8."""

import os
import signal
import subprocess
import sys

import pytest

COMPLETE = ("POST", "/v1/completions")
CHAT = ("POST", "/v1/chat/completions")

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell's closed streams, or POSIX signals")


@pytest.fixture
def closed(server):
    """Run `xi ARGS` with the streams of these numbers closed."""

    def run(*args, streams):
        closing = " ".join(f"{number}>&-" for number in streams)
        command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-m", "xi_cli.main", *args]
        environment = {**os.environ, "XI_ENDPOINT": server.url}
        return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    return run


@posix
@pytest.mark.parametrize("streams", [[2], [1], [0, 1, 2]])
def test_a_launch_with_closed_streams_goes_to_its_end(closed, server, words, streams):
    server.script["POST", "/v1/models?wait_ready=false"] = {"model_uid": "xi-tiny"}
    server.script["GET", "/v1/models/xi-tiny"] = words.Turns([words.status("PENDING"), words.status("READY")])
    done = closed("launch", "xi-tiny", streams=streams)
    assert done.returncode == 0, done.stderr
    assert server.script["GET", "/v1/models/xi-tiny"].values == [words.status("READY")]
    assert done.stdout == ("" if 1 in streams else "Model uid: xi-tiny\n")
    assert (done.stderr == "") == (2 in streams)


@posix
def test_a_table_with_a_closed_stdout(closed, server):
    server.script["GET", "/v1/models"] = {"object": "list", "data": [{"id": "xi-tiny", "created": 1}]}
    done = closed("list", streams=[1])
    assert (done.returncode, done.stderr) == (0, "")


@posix
def test_a_closed_stdin_is_an_empty_one(closed, server, words):
    server.script["GET", "/v1/models/xi-tiny"] = words.status("READY")
    done = closed("generate", "xi-tiny", streams=[0])
    assert done.returncode == 2
    assert "the prompt is empty" in done.stderr
    done = closed("chat", "xi-tiny", streams=[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@posix
def test_what_is_started_finds_the_streams_that_were_closed(tmp_path):
    code = """
import os, subprocess, sys
from xi_cli.main import open_closed_streams
open_closed_streams()
opened = os.open(os.devnull, os.O_RDONLY)
assert opened > 2, opened
for number in (0, 1, 2):
    os.fstat(number), print("a word", file=sys.stderr)
subprocess.run([sys.executable, "-c", "import os; [os.fstat(number) for number in (0, 1, 2)]"], check=True)
open(sys.argv[1], "w").write("done")
"""
    told = tmp_path / "told"
    subprocess.run(["sh", "-c", 'exec "$@" 0>&- 1>&- 2>&-', "sh", sys.executable, "-c", code, told], timeout=60, check=True)
    assert told.read_text() == "done"


@posix
@pytest.mark.parametrize("module", ["click", "xi_cli.group", "msgspec"])
def test_ctrl_c_while_imports_run_is_quiet(tmp_path, module):
    """As if it came as this module is imported."""
    code = f"""
import os, signal, sys
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Pressed())
sys.argv = ["xi", "--version"]
from xi_cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@posix
def test_ctrl_c_while_options_are_read_is_quiet(monkeypatch, xi):
    from importlib import metadata

    monkeypatch.setattr(metadata, "entry_points", lambda **_: os.kill(os.getpid(), signal.SIGINT))
    result = xi("--help")
    assert (result.exit_code, result.stderr.strip()) == (130, "")


def test_a_prompt_that_is_not_utf_8(spawn, server, words):
    server.script[COMPLETE] = words.events()
    for args, stdin in ((["-p", b"caf\xe9"], b""), ([], b"caf\xe9")):
        process = spawn("generate", "xi-tiny", *args, stdin=subprocess.PIPE, text=False)
        out, err = process.communicate(stdin, timeout=60)
        assert (process.returncode, out) == (1, b"")
        assert err.startswith(b"Error: the text is not UTF-8")
    assert server.calls(*COMPLETE) == []
