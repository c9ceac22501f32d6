"""Replicas that move, come and go by order while requests run: none fails, and a drain ends by its deadline."""

from __future__ import annotations

import threading
import time

import httpx
from town import BODY, UID, Load, Town, eventually

LONG = {**BODY, "max_tokens": 100_000, "stream": True}


def scale(town: Town, replica: int) -> None:
    town.http.put(f"/v1/models/{UID}/replicas", json={"replica": replica}).raise_for_status()


def test_scaling_down_and_up_and_a_rolling_restart_fail_no_request(busy: Town) -> None:
    with Load(busy) as load:
        for count in (1, 2, 1, 2):
            scale(busy, count)
            eventually(lambda: busy.usable() == len(busy.replicas()) == count, 30.0, f"{count} replicas")  # noqa: B023 - used at once
            load.more()
        before = busy.replicas()
        for name, other in (("w1", "w2"), ("w2", "w1")):  # one machine after the other is emptied and filled again
            busy.http.post(f"/v1/workers/{name}/drain", json={"seconds": 30.0}).raise_for_status()
            busy.settled([other, other])
            busy.http.post(f"/v1/workers/{name}/drain", json={"undo": True}).raise_for_status()
            load.more()
        assert not set(before) & set(busy.replicas()), "each replica is another process now"
    load.all_well()


def test_a_worker_that_is_told_to_end_fails_no_request(busy: Town) -> None:
    """SIGTERM: its replicas finish what they have, within the grace, and are placed elsewhere."""
    with Load(busy) as load:
        busy.processes["w1"].terminate()
        assert busy.processes["w1"].wait(20.0) == 0
        busy.settled(["w2", "w2"])
        load.more()
    load.all_well()


def test_a_drain_ends_by_its_deadline_whatever_runs(busy: Town) -> None:
    """A generation that would go on for long is ended with a typed error, or moves; the others are not touched."""
    events: list[str] = []
    errors: list[str] = []

    def read() -> None:
        try:
            with busy.visitor() as http, http.stream("POST", "/v1/chat/completions", json=LONG) as answer:
                events.extend(answer.iter_lines())
        except httpx.HTTPError as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(events) > 100, 20.0, "the streams to run")
    began = time.monotonic()
    busy.http.post("/v1/workers/w1/drain", json={"seconds": 2.0}).raise_for_status()
    busy.settled(["w2", "w2"])
    assert time.monotonic() - began < 15.0, "two seconds, the grace and a start"
    scale(busy, 1)
    busy.http.delete(f"/v1/models/{UID}").raise_for_status()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    assert not errors, "no silent cut"
    ends = [line for line in events if line == "data: [DONE]" or '"error"' in line]
    assert len(ends) >= len(threads), "each stream was told how it ended"
    eventually(lambda: not busy.replicas(), 10.0, "all to be gone")
