"""`xi supervisor`, `xi worker`, `xi gateway`, `xi join-token`: what they check, and what they become."""

import os
import sys

import pytest

from xi_cli.commands import gateway as gateway_module
from xi_cli.commands import supervisor as supervisor_module
from xi_cli.commands import worker as worker_module
from xi_core.cluster import joining
from xi_core.cluster.joining import JoinToken
from xi_core.transport.security import KeyPair

TOKEN = JoinToken(["tcp://10.0.0.5:9998"], KeyPair.new().public, joining.new_secret(), 2e9, "worker").text()
HEAD = [sys.executable, "-P", "-m"]


@pytest.fixture
def became(monkeypatch):
    """What a command would have become: (command, environment)."""
    calls = []
    for module in (gateway_module, supervisor_module, worker_module):
        monkeypatch.setattr(module, "become", lambda command, environment: calls.append((command, environment)))
    monkeypatch.delenv("XI_JOIN_TOKEN", raising=False)
    return calls


def test_supervisor_becomes_the_launcher_with_a_cluster_port(xi, became):
    assert xi("supervisor", "-p", "0").exit_code == 0
    assert xi("supervisor", "-H", "10.0.0.5", "--cluster-port", "7000", "-ak", "secret").exit_code == 0
    assert became[0][0][-2:] == ["--cluster-port", "9998"]
    command, environment = became[1]
    assert command[-2:] == ["--cluster-port", "7000"]
    assert command[command.index("--host") + 1] == "10.0.0.5"
    assert environment["XI_API_KEY"] == "secret"
    assert "secret" not in command


def test_supervisor_off_loopback_needs_a_key(xi, became):
    result = xi("supervisor", "-H", "10.0.0.5")
    assert result.exit_code == 2
    assert "set a key with XI_API_KEY" in result.stderr
    assert xi("supervisor", "-H", "10.0.0.5", "--no-auth").exit_code == 0


def test_worker(xi, became, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    base = [*HEAD, "xi_core.cluster.worker", "--supervisor"]
    for arguments, expected in [
        (["-e", "tcp://h:1", "--token", TOKEN], ["tcp://h:1"]),
        (["--token-file", str(file)], ["tcp://10.0.0.5:9998"]),
        (
            ["-e", "http://h:9997", "--token", TOKEN, "-H", "10.0.0.6", "--name", "w1"],
            ["http://h:9997", "--name", "w1", "--host", "10.0.0.6"],
        ),
    ]:
        assert xi("worker", *arguments).exit_code == 0
        command, environment = became[-1]
        assert command == base + expected
        assert environment["XI_JOIN_TOKEN"] == TOKEN, "in the environment, for `ps` shows command lines"


def test_worker_without_a_token(xi, became, monkeypatch):
    assert xi("worker", "-e", "tcp://h:1").exit_code == 0
    assert "XI_JOIN_TOKEN" not in became[-1][1]
    monkeypatch.setenv("XI_JOIN_TOKEN", TOKEN)
    assert xi("worker").exit_code == 0
    assert "tcp://10.0.0.5:9998" in became[-1][0]


@pytest.mark.parametrize("command", ["worker", "gateway"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--token", "xi1.x"], "the join token can't be read"),
        (["--token", TOKEN, "--token-file", "x"], "give one"),
        (["--token-file", "no-such-file"], "--token-file no-such-file can't be read"),
        (["--token-file", os.devnull], f"--token-file {os.devnull} is empty"),
        (["-e", "10.0.0.5:9998"], "write tcp://HOST:PORT"),
        (["-e", "tcp://10.0.0.5"], "write tcp://HOST:PORT"),
    ],
)
def test_bad_input_is_told(xi, became, command, arguments, told):
    result = xi(command, *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert became == []


def test_gateway(xi, became):
    assert xi("gateway", "-e", "tcp://h:1", "--name", "g1", "-p", "0").exit_code == 0
    assert became[0][0] == [
        *HEAD, "xi_server", "--supervisor", "tcp://h:1", "--name", "g1", "--join", "--host", "127.0.0.1", "--port", "0",
    ]  # fmt: skip
    result = xi("gateway", "-e", "tcp://h:1", "-H", "10.0.0.7")
    assert result.exit_code == 2
    assert "set a key with XI_API_KEY" in result.stderr


@pytest.mark.parametrize(("command", "arguments"), [("gateway", ["-e", "tcp://h:1"]), ("supervisor", [])])
def test_origins_of_web_pages(xi, became, command, arguments):
    assert xi(command, *arguments, "--allow-origin", "https://a", "--allow-origin", "http://b:1").exit_code == 0
    assert became[0][1]["XI_ALLOW_ORIGINS"] == "https://a,http://b:1"
    assert xi(command, *arguments).exit_code == 0
    assert "XI_ALLOW_ORIGINS" not in became[1][1]
    for bad, told in (("*", "there is no key"), ("https://a/b", "is no origin")):
        result = xi(command, *arguments, "--allow-origin", bad)
        assert result.exit_code == 2
        assert told in result.stderr


def test_join_token(xi, server):
    server.script["POST", "/v1/cluster/join-tokens"] = {"token": "xi1.abc", "command": "xi gateway -e tcp://h:1 --token xi1.abc"}
    result = xi("join-token", "--ttl", "90m", "--role", "gateway")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "xi1.abc\n"
    assert "  xi gateway -e tcp://h:1 --token xi1.abc\n" in result.stderr
    assert server.seen[-1].body == {"role": "gateway", "ttl": 5400.0}
    assert '"token": "xi1.abc"' in xi("join-token", "--json").stdout


@pytest.mark.parametrize("ttl", ["", "1", "h", "-1h", "1y", "1e3s", "9" * 400 + "d"])
def test_durations(xi, ttl):
    result = xi("join-token", f"--ttl={ttl}")
    assert result.exit_code == 2
    assert "write 90s, 15m, 1h or 2d" in result.stderr


@pytest.mark.parametrize("command", ["supervisor", "worker", "gateway"])
@pytest.mark.parametrize(("name", "value"), [("XI_LOG_LEVEL", "loud"), ("XI_GRACE", "-1")])
def test_a_wrong_setting_ends_a_server_with_the_status_that_no_restart_helps(xi, became, monkeypatch, command, name, value):
    monkeypatch.setenv(name, value)
    result = xi(command, *(["-e", "tcp://h:1"] if command != "supervisor" else []))
    assert result.exit_code == 78
    assert f"Error: {name}='{value}'" in result.stderr
    assert became == []


@pytest.mark.parametrize("command", ["supervisor", "worker", "gateway"])
def test_a_log_level_in_any_case_is_one(xi, became, monkeypatch, command):
    monkeypatch.setenv("XI_LOG_LEVEL", "Warning")
    assert xi(command, *(["-e", "tcp://h:1"] if command != "supervisor" else [])).exit_code == 0
    ((words, environment),) = became
    assert "warning" in (*words, environment["XI_LOG_LEVEL"])
