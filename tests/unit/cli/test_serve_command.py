"""`xi serve`: what it checks, and what it becomes."""

import subprocess
import sys

import pytest

from xi_cli.commands import serve as module
from xi_core.cluster import init


@pytest.fixture
def became(monkeypatch):
    """What `xi serve` would have become: (command, environment)."""
    calls = []
    monkeypatch.setattr(module, "become", lambda command, environment: calls.append((command, environment)))
    return calls


def launcher(host="127.0.0.1", port="9997", level="info"):
    return [sys.executable, "-P", "-m", "xi_core.cluster.launcher", "--host", host, "--port", port, "--log-level", level]


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (["serve"], launcher()),
        (["serve", "-p", "8000", "--log-level", "debug"], launcher(port="8000", level="debug")),
        (["serve", "--port", "0"], launcher(port="0")),
        (["-p", "8000", "--log-level", "error", "serve"], launcher(port="8000", level="error")),
        (["-p", "8000", "serve", "-p", "8001"], launcher(port="8001")),
        (["serve", "-v"], launcher(level="debug")),
        (["-v", "serve"], launcher(level="debug")),
        (["serve", "-H", "localhost"], launcher(host="localhost")),
        (["serve", "-H", "::1"], launcher(host="::1")),
        (["serve", "-H", "0.0.0.0", "--no-auth"], [*launcher(host="0.0.0.0"), "--no-auth"]),
        (["serve", "--json"], [*launcher(), "--json"]),
        (["-H", "0.0.0.0", "serve", "--no-auth"], [*launcher(host="0.0.0.0"), "--no-auth"]),
    ],
)
def test_becomes_the_launcher(xi, became, args, command):
    result = xi(*args)
    assert result.exit_code == 0, result.output
    assert became[0][0] == command
    assert "XI_API_KEY" not in became[0][1]
    assert "XI_ALLOW_ORIGINS" not in became[0][1]


def test_settings_are_the_defaults(xi, became, monkeypatch):
    monkeypatch.setenv("XI_PORT", "8123")
    monkeypatch.setenv("XI_HOST", "127.0.0.2")
    monkeypatch.setenv("XI_LOG_LEVEL", "warning")
    xi("serve")
    assert became[0][0] == launcher("127.0.0.2", "8123", "warning")


def test_the_key_travels_in_the_environment_only(xi, became, monkeypatch):
    assert xi("serve", "-H", "0.0.0.0", "--api-key", "a-secret").exit_code == 0
    monkeypatch.setenv("XI_API_KEY", "other-secret")
    assert xi("serve", "-H", "0.0.0.0").exit_code == 0
    assert [environment["XI_API_KEY"] for _, environment in became] == ["a-secret", "other-secret"]
    assert not any("secret" in word for command, _ in became for word in command)


def test_origins_travel_in_the_environment(xi, became, monkeypatch):
    monkeypatch.setenv("XI_ALLOW_ORIGINS", "https://setting.example")
    assert xi("serve", "--allow-origin", "https://a", "--allow-origin", "http://localhost:3000").exit_code == 0
    assert xi("serve", "-ak", "k", "--allow-origin", "*").exit_code == 0
    assert xi("serve").exit_code == 0
    found = [environment["XI_ALLOW_ORIGINS"] for _, environment in became]
    assert found == ["https://a,http://localhost:3000", "*", "https://setting.example"]


def test_a_setting_that_is_no_origin(xi, became, monkeypatch):
    monkeypatch.setenv("XI_ALLOW_ORIGINS", "null")
    result = xi("serve")
    assert result.exit_code == 2
    assert "XI_ALLOW_ORIGINS (--allow-origin): 'null' is no origin" in result.stderr
    assert not became


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["serve", "-H", "0.0.0.0"], "set a key with XI_API_KEY (or --api-key), or say --no-auth"),
        (["-H", "::", "serve"], "can be reached from other machines"),
        (["serve", "-H", "myhost.example"], "can be reached from other machines"),
        (["serve", "--no-auth", "--api-key", "x"], "leave one out"),
        (["serve", "--api-key", "a b"], "printable ASCII"),
        (["serve", "--api-key", "ключ"], "printable ASCII"),
        (["serve", "--allow-origin", "*"], "XI_ALLOW_ORIGINS (--allow-origin): '*' lets every web page in"),
        (["serve", "--allow-origin", "https://a", "--allow-origin", "https://b/c"], "'https://b/c' is no origin"),
        (["serve", "-p", "65536"], "65536 is not in the range"),
        (["serve", "-p", "http"], "not a valid integer"),
        (["serve", "--log-level", "loud"], "'loud' is not one of"),
        (["serve", "extra"], "unexpected extra argument"),
    ],
)
def test_refusals(xi, became, args, message):
    result = xi(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not became


@pytest.mark.parametrize(("name", "value"), [("XI_PORT", "many"), ("XI_LOG_LEVEL", "loud"), ("XI_GRACE", "-1")])
def test_a_wrong_setting_stops_it_before_anything_starts(xi, became, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    result = xi("serve")
    assert result.exit_code == 78, "systemd knows by it that no restart would help"
    assert f"Error: {name}='{value}'" in result.stderr
    assert not became


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no exec")
def test_it_stays_the_same_process():
    """`xi serve` execs: signals reach the launcher, and no parent stays behind."""
    code = """
import os, sys
from xi_cli.commands.serve import become
print(os.getpid(), flush=True)
become([sys.executable, "-c", "import os; print(os.getpid())"], dict(os.environ))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    first, second = done.stdout.split()
    assert first == second


@pytest.mark.parametrize(("pid", "below"), [(1, [sys.executable, "-I", "-S", init.__file__]), (2, [])])
def test_the_first_process_of_a_container_runs_it_below_one_that_reaps_orphans(monkeypatch, pid, below):
    became = []
    monkeypatch.setattr(module.os, "getpid", lambda: pid)
    monkeypatch.setattr(module.os, "execve", lambda *words: became.append(words))
    module.become(["/bin/python", "-m", "x"], {"A": "b"})
    assert became == [((below or ["/bin/python"])[0], [*below, "/bin/python", "-m", "x"], {"A": "b"})]
