"""`xi plugins`: what is shown of good, blocked and broken plugins."""

import json

import pytest


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """An installed distribution whose plugin raises on import and whose command takes a built-in's name."""
    info = tmp_path / "broken_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[xi]\nbroken = broken_plugin\n[xi.commands]\nlist = broken_plugin:command\nother = broken_plugin:command\n"
    )
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no [luck] today')\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_broken_plugin_is_shown_with_its_reason(xi, broken):
    result = xi("plugins")
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("broken "))
    assert line.split() == ["broken", "broken-plugin", "1.2", "quarantined", "-"]
    assert "broken (broken-plugin 1.2) is quarantined: RuntimeError: no [luck] today" in result.stderr
    assert "list (broken-plugin 1.2) is quarantined: 'list' is a command of xi itself; choose another name" in result.stderr
    assert "other (broken-plugin 1.2) is quarantined: command 'other' of broken-plugin 1.2 can't be loaded" in result.stderr
    assert "Traceback" not in result.output
    assert "`xi plugins -v` shows the tracebacks." in result.stderr


@pytest.mark.parametrize("args", [["plugins", "-v"], ["-v", "plugins"]])
def test_tracebacks_with_v(xi, broken, args):
    result = xi(*args)
    assert result.exit_code == 0
    assert "Traceback (most recent call last)" in result.stderr


def test_json(xi, broken):
    records = {record["name"]: record for record in json.loads(xi("plugins", "--json").stdout)}
    assert records["broken"]["state"] == "quarantined"
    assert "no [luck] today" in records["broken"]["trace"]
    assert records["transports"]["state"] == "loaded"
    assert "zmq" in records["transports"]["offers"]["xi_transports"]


def test_blocked(xi, monkeypatch):
    monkeypatch.setenv("XI_PLUGINS", "-transports")
    records = {record["name"]: record for record in json.loads(xi("plugins", "--json").stdout)}
    assert records["transports"]["state"] == "blocked"


def test_the_built_in_command_still_runs(xi, broken, server):
    server.script["GET", "/v1/models"] = {"object": "list", "data": []}
    assert xi("list", "--json").stdout == "[]\n"
    assert "From broken-plugin 1.2." in xi("--help").stdout
