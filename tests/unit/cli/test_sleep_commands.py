"""`xi sleep` and `xi wake`, and what `xi list` shows of a model that sleeps."""

import json

import pytest

SLEEP, WAKE = ("POST", "/v1/models/m/sleep"), ("POST", "/v1/models/m/wake")


@pytest.mark.parametrize(("args", "level"), [([], 1), (["--level", "2"], 2)])
def test_sleep(xi, server, args, level):
    server.script[SLEEP] = {"model_uid": "m", "level": level}
    result = xi("sleep", "m", *args)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Asleep: m. Wake it: xi wake m\n")
    assert server.calls(*SLEEP)[0].body == {"level": level}
    assert json.loads(xi("sleep", "m", *args, "--json").stdout) == {"model_uid": "m", "level": level}


def test_wake(xi, server):
    server.script[WAKE] = {"model_uid": "m", "level": 0}
    assert xi("wake", "m").stderr == "Awake: m\n"
    assert json.loads(xi("wake", "m", "--json").stdout) == {"model_uid": "m", "level": 0}


def test_there_are_two_levels(xi, server):
    assert xi("sleep", "m", "--level", "3").exit_code == 2
    assert server.seen == []


def test_the_servers_refusal_is_shown(xi, server, words):
    server.script[SLEEP] = (400, words.error("model 'm' can't sleep on engine e: launch it with --x", "unsupported_field"))
    result = xi("sleep", "m")
    assert (result.exit_code, result.stderr) == (1, "Error: model 'm' can't sleep on engine e: launch it with --x\n")


@pytest.mark.parametrize(
    ("ready", "asleep", "state", "replicas"),
    [(0, 2, "ASLEEP", "0/2, 2 asleep"), (1, 1, "READY", "1/2, 1 asleep"), (2, 0, "READY", "2/2")],
)
def test_list_shows_who_sleeps(xi, server, ready, asleep, state, replicas):
    model = {"id": "m", "created": 1, "state": "READY", "replica": 2, "ready_replicas": ready, "asleep_replicas": asleep}
    server.script["GET", "/v1/models"] = {"object": "list", "data": [model]}
    line = xi("list").stdout.splitlines()[1]
    assert line.split()[1] == state
    assert f" {replicas} " in line + " "
