"""Engines that die, at their start or at each request, or of memory: the launch ends FAILED and says why, and what runs beside it doesn't feel it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dying_engine import FEAST, LAST_WORDS, MODEL, POISON
from town import Load, Town, eventually

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
POISONED = {**CHAT, "messages": [{"role": "user", "content": POISON}]}


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Town]:
    """xi-tiny on two workers that also have the dying engine."""
    with Town(tmp_path, plugins=["dying_engine"]) as town:
        town.work("w1")
        town.work("w2")
        town.launch(2)
        yield town


def fails(town: Town, seconds: float = 60.0) -> str:
    """Wait until the launch has FAILED, and answer why."""
    eventually(lambda: town.status(MODEL)["state"] == "FAILED", seconds, "the launch to fail", lambda: str(town.status(MODEL)))
    return str(town.status(MODEL)["error"])


@pytest.mark.parametrize("replica", [1, 3])
def test_an_engine_that_dies_at_its_start(doomed: Town, replica: int) -> None:
    neighbours = doomed.pids("replica")
    with Load(doomed) as load:
        answer = doomed.http.post(
            "/v1/models", json={"model_name": MODEL, "model_engine": "dying", "replica": replica, "dies_at_start": True}
        )
        said = answer.text if answer.status_code != 200 else fails(doomed)
        why = fails(doomed)
        load.more()
    load.all_well()
    for text in (said, why):
        assert LAST_WORDS in text
        assert "ended with status 9" in text
    assert "ended 4 times within 60 s" in why, "three restarts, no more"
    doomed.settled(["w1", "w2"])
    assert doomed.pids("replica") == neighbours
    doomed.launch(2, model_name=MODEL, model_engine="dying")  # and it may be launched again
    assert doomed.http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_an_engine_that_dies_at_each_request(doomed: Town) -> None:
    doomed.launch(model_name=MODEL, model_engine="dying")
    neighbours = {name: pid for name, pid in doomed.pids("replica").items() if name.startswith("xi-tiny")}
    answers: list[int] = []

    def over() -> bool:
        """Ask it to death whenever it lives."""
        if doomed.usable(MODEL):
            answer = doomed.http.post("/v1/chat/completions", json=POISONED)
            assert answer.json()["error"]["message"]
            answers.append(answer.status_code)
        return bool(doomed.status(MODEL)["state"] == "FAILED")

    with Load(doomed) as load:
        eventually(over, 60.0, "the launch to fail", lambda: str(answers))
        load.more()
    load.all_well()
    why = fails(doomed)
    assert LAST_WORDS in why
    assert "ended 4 times within 60 s" in why
    assert set(answers) <= {500, 502, 503}, answers
    doomed.settled(["w1", "w2"])
    assert doomed.pids("replica") == neighbours


def test_an_engine_that_runs_out_of_memory(doomed: Town) -> None:
    doomed.launch(model_name=MODEL, model_engine="dying")
    neighbours = {name: pid for name, pid in doomed.pids("replica").items() if name.startswith("xi-tiny")}
    with Load(doomed) as load:
        answer = doomed.http.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": FEAST}]})
        assert answer.status_code in {500, 502, 503}
        assert "MemoryError" in answer.text
        restarts = lambda: doomed.status(MODEL)["replicas"][0]["restarts"]  # noqa: E731
        eventually(lambda: restarts() and doomed.usable(MODEL) == 1, 60.0, "it to be back", lambda: str(doomed.status(MODEL)))
        load.more()
    load.all_well()
    assert doomed.http.post("/v1/chat/completions", json=CHAT).status_code == 200
    doomed.settled(["w1", "w2"])
    assert {name: pid for name, pid in doomed.pids("replica").items() if name.startswith("xi-tiny")} == neighbours


def test_one_bad_request_does_not_end_all_replicas(doomed: Town) -> None:
    """A request that kills whoever takes it is not handed on without end."""
    doomed.launch(6, model_name=MODEL, model_engine="dying")
    before = {name: pid for name, pid in doomed.pids("replica").items() if name.startswith(MODEL)}
    assert doomed.http.post("/v1/chat/completions", json=POISONED).status_code >= 500
    eventually(lambda: doomed.usable(MODEL) == doomed.status(MODEL)["ready_replicas"] == 6, 30.0, "all to be back")
    after = doomed.pids("replica")
    assert len(set(before.items()) & set(after.items())) >= 3, "at most three lives for one request"
