"""`xi drain`: it waits until the worker says itself that nothing runs there."""

import pytest

from xi_cli import patience
from xi_cli.commands import drain as module

ORDER = ("POST", "/v1/workers/node-1/drain")
WORKERS = ("GET", "/v1/workers")
AWAY = "Error: node-1 is away: what runs there isn't known; nothing new is placed on it\n"


def worker(state, *replicas, name="node-1"):
    return {"name": name, "address": "10.0.0.6", "state": state, "replicas": list(replicas)}


@pytest.fixture
def drained(server, monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.0)
    server.script[ORDER] = {}
    return server


def test_a_worker_that_is_away_is_not_taken_for_an_empty_one(xi, drained, words):
    answers = [[worker("away")], [worker("draining", "m-0")], [worker("draining")]]
    drained.script[WORKERS] = words.Turns([[*answer, worker("ready", "m-1", name="node-2")] for answer in answers])
    result = xi("drain", "node-1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "node-1: 1 replica(s) left: m-0\nnode-1 is empty\n"
    assert len(drained.calls(*WORKERS)) == 3


@pytest.mark.parametrize("listed", [[worker("away")], []])
def test_a_worker_that_stays_away_ends_the_wait_without_a_word_of_empty(xi, drained, monkeypatch, listed):
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    drained.script[WORKERS] = listed
    for more in ([], ["--json"]):
        result = xi("drain", "node-1", *more)
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", AWAY)


def test_a_supervisor_that_is_started_again_does_not_end_the_wait(xi, drained, words):
    restarting = (503, words.error("the supervisor doesn't answer", "unavailable"))
    drained.script[WORKERS] = words.Turns([[worker("draining", "m-0")], restarting, restarting, [worker("draining")]])
    result = xi("drain", "node-1")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "node-1: 1 replica(s) left: m-0\nnode-1 is empty\n"


def test_a_supervisor_that_stays_away_is_told(xi, drained, words, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    drained.script[WORKERS] = (503, words.error("the supervisor doesn't answer", "unavailable"))
    result = xi("drain", "node-1")
    assert (result.exit_code, result.stderr) == (1, "Error: the supervisor doesn't answer\n")


@pytest.mark.parametrize(("option", "told"), [("--undo", "node-1 takes replicas again"), ("--no-wait", "node-1 is being drained")])
def test_a_drain_that_is_not_waited_for_asks_for_no_workers(xi, drained, option, told):
    result = xi("drain", "node-1", option)
    assert (result.exit_code, result.stderr) == (0, f"{told}\n")
    assert not drained.calls(*WORKERS)
