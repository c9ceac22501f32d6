"""`xi pull` by a server: what it sends, and what it makes of several workers."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

TINY = Path(__file__).parents[3] / "plugins" / "xi_plugins" / "families" / "xi_tiny" / "xi-tiny-f16.gguf"
START = ("POST", "/v1/cache/models")
STATUS = ("GET", "/v1/cache/pulls/1")


def status(*states: tuple[str, str], **more: Any) -> dict[str, Any]:
    workers = [{"worker": name, "state": state, "stage": "downloading 1/1 m", "path": f"/{name}/m"} | more for name, state in states]
    return {"pull_id": "1", "model_name": "a/m", "source": "hub", "workers": workers}


def test_paths_of_several_workers_are_named(xi: Any, server: Any) -> None:
    server.script[START] = status(("one", "RUNNING"), ("two", "RUNNING"))
    server.script[STATUS] = status(("one", "DONE"), ("two", "DONE"))
    result = xi("pull", "a/m", "-q", "f16", "--worker-ip", "one,two", "--trust-remote-code")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one: /one/m\ntwo: /two/m\n"
    assert "two: downloading 1/1 m" in result.stderr
    assert server.calls(*START)[0].body == {
        "model_name": "a/m",
        "quantization": "f16",
        "worker_ip": "one,two",
        "trust_remote_code": True,
    }


def test_a_worker_that_failed_is_named(xi: Any, server: Any) -> None:
    server.script[START] = status(("one", "FAILED"), error="the disk is full")
    result = xi("pull", "a/m", "-e", server.url)
    assert result.exit_code == 1
    assert "one: the disk is full" in result.stderr


def test_ctrl_c_while_the_server_is_asked_ends_the_download_that_it_begins(spawn: Any, server: Any, words: Any) -> None:
    server.script[START] = server.script[STATUS] = server.script["DELETE", STATUS[1]] = status(("one", "RUNNING"))
    server.answering.clear()
    process = spawn("pull", "a/m", "-e", server.url)
    words.eventually(lambda: server.calls(*START))
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "waiting for the server's answer, to end the download" in process.stderr.readline()
    server.answering.set()
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert len(server.calls("DELETE", STATUS[1])) == 1


def test_ctrl_c_while_a_download_is_watched_ends_it(spawn: Any, server: Any, words: Any) -> None:
    server.script[START] = server.script[STATUS] = server.script["DELETE", STATUS[1]] = status(("one", "RUNNING"))
    process = spawn("pull", "a/m", "-e", server.url)
    words.eventually(lambda: server.calls(*STATUS))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert len(server.calls("DELETE", STATUS[1])) == 1


def test_a_registered_model_is_known_here(xi: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where a server pulls; that one has files of its own says where they are."""
    monkeypatch.setenv("XI_HOME", str(tmp_path))
    monkeypatch.setenv("XI_OFFLINE", "1")
    (tmp_path / "families").mkdir()
    for name, where in (
        ("mine", {"path": str(TINY)}),
        ("theirs", {"specs": [{"format": "pytorch", "sources": {"modelscope": "a/b"}}]}),
    ):
        (tmp_path / "families" / f"{name}.json").write_text(json.dumps({"name": name, **where}))
    result = xi("pull", "mine", "--local")
    assert (result.exit_code, result.stdout) == (0, f"{TINY}\n"), result.stderr
    result = xi("pull", "theirs", "--local")
    assert result.exit_code == 1
    assert "'a/b' of modelscope is not in the cache" in result.stderr


def test_the_model_is_named_once(xi: Any, server: Any) -> None:
    assert xi("pull").exit_code == 2
    assert xi("pull", "a/m", "-n", "b/m").exit_code == 2
    assert xi("pull", "a/m", "--local", "--worker-ip", "one").exit_code == 2
    assert not server.seen
