"""Launches survive the server: a stop, a kill of everything, a kill of the supervisor alone; and are forgotten when that is asked for."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from xi_core.errors import ModelNotFound, Unavailable
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import wait_until


def is_ready(server: RunningServer, uid: str) -> bool:
    try:
        return server.client.model(uid).state == "READY"
    except ModelNotFound:
        return False


def has_another_supervisor(server: RunningServer, old: int) -> bool:
    try:
        return server.pids("supervisor") not in ([], [old])
    except Unavailable:
        return False


def test_what_ran_runs_again_after_a_stop_and_after_a_kill(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    with server:
        server.client.launch("xi-tiny", model_engine="llama.cpp", model_uid="kept", env={"A_TOKEN": "secret"})
        server.client.launch("xi-tiny", model_engine="llama.cpp", model_uid="ended")
        server.client.scale("kept", 2)
        server.client.terminate("ended")
    with server:
        wait_until(lambda: is_ready(server, "kept"), 30.0, "the launch to be back")
        status = server.client.model("kept")
        assert (status.spec.replica, status.ready_replicas) == (2, 2)
        assert server.client.chat("kept", [{"role": "user", "content": "Hi"}]).choices[0].message.content
        assert [model.id for model in server.client.models()] == ["kept"]
        server.kill()
    with server:
        wait_until(lambda: is_ready(server, "kept"), 30.0, "the launch to be back after a kill")
    assert (tmp_path / "cluster" / "state.db").stat().st_mode & 0o077 == 0, "it holds the values of --env"


def test_a_restarted_supervisor_adopts_and_starts_nothing_twice(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        server.client.launch("xi-tiny", model_engine="llama.cpp")
        before = server.client.model("xi-tiny").replicas[0]
        (supervisor,) = server.pids("supervisor")
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: has_another_supervisor(server, supervisor), 20.0, "another supervisor")
        wait_until(lambda: is_ready(server, "xi-tiny"), 20.0, "the launch to be adopted")
        after = server.client.model("xi-tiny").replicas
        assert [(replica.pid, replica.restarts) for replica in after] == [(before.pid, 0)]


def test_nothing_is_restored_where_that_is_not_wanted(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        server.client.launch("xi-tiny", model_engine="llama.cpp")
    with RunningServer(tmp_path, "--no-restore") as server:
        assert server.client.models() == []
    with RunningServer(tmp_path) as server:
        assert server.client.models() == [], "it was forgotten"


def test_a_launch_that_can_not_be_had_any_more_ends_failed_and_is_forgotten(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny = Path(__file__).parents[2] / "plugins" / "xi_plugins" / "families" / "xi_tiny"
    model.mkdir()
    weights = next(tiny.rglob("*.gguf"))
    (model / "tiny.gguf").write_bytes(weights.read_bytes())
    home = tmp_path / "home"
    with RunningServer(home) as server:
        server.client.launch(str(model / "tiny.gguf"), model_engine="llama.cpp", model_uid="mine")
    (model / "tiny.gguf").unlink()
    with RunningServer(home) as server:
        wait_until(lambda: server.client.model("mine").state == "FAILED", 30.0, "the launch to fail")
        assert "tiny.gguf" in (server.client.model("mine").error or "")
    with RunningServer(home) as server, pytest.raises(ModelNotFound):
        server.client.model("mine")


def test_two_servers_of_one_home(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as first:
        first.client.launch("xi-tiny", model_engine="llama.cpp")
        second = RunningServer(tmp_path)
        second.log = tmp_path / "second.log"
        with second:
            assert second.client.models() == []
            assert "won't be remembered over a restart: another supervisor uses" in second.log.read_text()


def test_a_memory_that_can_not_be_read_does_not_keep_xi_from_serving(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "state.db").write_bytes(b"this is no database, but it is long enough to look at" * 100)
    with RunningServer(tmp_path) as server:
        assert server.client.models() == []
        assert "state.db can't be opened" in server.log.read_text()


def test_a_launch_of_a_newer_xi_is_forgotten(tmp_path: Path) -> None:
    with RunningServer(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "cluster" / "state.db") as db:
        db.execute("INSERT INTO launches VALUES ('other', ?)", (b"\x81\xa3new\xc3",))
    with RunningServer(tmp_path) as server:
        assert server.client.models() == []
        assert "can't be read and is forgotten" in server.log.read_text()
