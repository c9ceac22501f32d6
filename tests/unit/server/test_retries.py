"""Replicas that are lost, leave or refuse: what is retried unseen, and what the client is told."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xi_core.errors import ChannelClosed, ChannelFull
from xi_core.wire.frames import Data, End, Load, Open, Ping, encode
from xi_server.replica_link import ReplicaLink


@pytest.mark.parametrize("stream", [False, True])
async def test_replica_lost_before_open_is_retried_unseen(stage: Any, replica: Any, kit: Any, stream: bool) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    call = stage.start(kit.chat(stream=stream))
    await kit.until(lambda: one.submitted)
    await one.close()
    await call.task
    assert (call.status, call.json) == (200, {"ok": True})
    assert two.submitted[0].body == one.submitted[0].body
    assert two.submitted[0].id != one.submitted[0].id
    metrics = (await stage.control("GET", "/metrics")).body_text
    assert b'xi_retries_total{model="m"} 1' in metrics
    assert b'xi_replica_losses_total{model="m"} 1' in metrics


async def test_whole_answer_lost_half_way_is_retried_too(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    call = stage.start()
    await kit.until(lambda: one.submitted)
    one.send(Open(one.submitted[0].id, 200, "application/json"), Data(one.submitted[0].id, b'{"half', 1))
    await one.close()
    await call.task
    assert (call.status, call.json) == (200, {"ok": True})


async def test_503_before_the_first_byte_is_retried(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1", script=kit.answering(503, b'{"error":"drains"}')), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    assert (await stage.ask()).json == {"ok": True}


async def test_503_of_the_only_replica_is_passed_on(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering(503, b'{"error":"drains"}', 3.0)))
    call = await stage.ask()
    assert (call.status, call.json, call.answer_headers["retry-after"]) == (503, {"error": "drains"}, "3")


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500])
async def test_other_statuses_are_never_retried(stage: Any, replica: Any, kit: Any, status: int) -> None:
    one, two = replica("r1", script=kit.answering(status, b"{}")), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    assert (await stage.ask()).status == status
    assert two.submitted == []


async def test_loss_of_the_only_replica_is_a_502(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start()
    await kit.until(lambda: one.submitted)
    await one.close()
    await call.task
    assert (call.status, call.error["code"], call.answer_headers["retry-after"]) == (502, "replica_lost", "1")


async def test_two_losses_end_the_request_and_log_a_fingerprint(stage: Any, replica: Any, kit: Any, caplog: Any) -> None:
    one, two, three = replica("r1"), replica("r2"), replica("r3", script=kit.answering())
    await stage.serve("m", one, two, three)
    call = stage.start(kit.chat(user="secret-text"))
    for dying in (one, two):
        await kit.until(lambda dying=dying: dying.submitted)
        await dying.close()
    await call.task
    assert (call.status, call.error["code"]) == (500, "engine_error")
    assert three.submitted == []
    assert "fingerprint" in call.error["message"]
    record = next(r for r in caplog.records if "fingerprint" in r.getMessage())
    assert record.levelno == logging.ERROR
    assert "secret-text" not in caplog.text


async def test_a_request_is_not_to_blame_for_replicas_that_stop(stage: Any, replica: Any, kit: Any) -> None:
    """As where two are scaled in at once: they say so, and end without what came too late."""
    one, two = replica("r1"), replica("r2")
    await stage.serve("m", one, two, replica("r3", script=kit.answering()))
    call = stage.start()
    for stopping in (one, two):
        await kit.until(lambda stopping=stopping: stopping.submitted)
        stopping.say(draining=True)
        await stopping.close()
    await call.task
    assert call.status == 200


def has_ended(link: ReplicaLink) -> bool:
    """Whether the link's connection ends within 5 s, in which the loop stands still."""
    channel, deadline = link._channel, time.monotonic() + 5.0
    while channel is not None and time.monotonic() < deadline:
        try:
            channel.send(encode(Ping(1)))
        except ChannelClosed:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="ipc endpoints need Unix sockets")
@pytest.mark.parametrize("word", [True, False])
async def test_a_request_is_not_to_blame_for_what_it_was_never_sent_to(
    stage: Any, replica: Any, kit: Any, tmp_path: Path, word: bool
) -> None:
    """The gateway was busy while two replicas ended, with or without a word: both lie unread when it sends the request."""
    ending = [replica(name, transport=kit.ZMQ, endpoint=f"ipc://{tmp_path}/{name}.sock") for name in ("r1", "r2")]
    await stage.serve("m", *ending, replica("r3", script=kit.answering()))
    await kit.until(lambda: all(one.pings for one in ending))
    for one in ending:
        if word:
            one.say(draining=True)
        await one.close()
    links = stage.gateway.table.models["m"].links
    assert all(has_ended(links[one.replica_id]) for one in ending)
    call = await stage.ask()
    assert (call.status, [one.submitted for one in ending]) == (200, [[], []])


async def test_after_a_loss_a_replica_on_another_worker_is_asked(stage: Any, replica: Any, kit: Any) -> None:
    """Where a worker dies, its replicas die one after the other: the next of them would be the request's second loss."""
    dying, sibling = replica("r1", workers=("w1", "w2")), replica("r2", workers=("w2",))
    await stage.serve("m", dying, sibling, replica("r3", workers=("w3",), script=kit.answering()))
    call = stage.start()
    await kit.until(lambda: dying.submitted)
    await dying.close()
    await call.task
    assert (call.status, sibling.submitted) == (200, [])


async def test_where_all_are_on_one_worker_the_next_is_asked_there(stage: Any, replica: Any, kit: Any) -> None:
    dying = replica("r1", workers=("w1",))
    await stage.serve("m", dying, replica("r2", workers=("w1",), script=kit.answering()))
    call = stage.start()
    await kit.until(lambda: dying.submitted)
    await dying.close()
    await call.task
    assert call.status == 200


@pytest.fixture
def no_room(stage: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ReplicaLink]:
    """Lets the link of this replica take no message of more than 1 KiB: many large ones wait there."""

    def fill(name: str) -> ReplicaLink:
        link: ReplicaLink = stage.gateway.table.models["m"].links[name]
        assert link._channel is not None
        send = link._channel.send

        def full(message: bytes) -> None:
            if len(message) > 1024:
                raise ChannelFull("its queue is full and nothing was sent")
            send(message)

        monkeypatch.setattr(link._channel, "send", full)
        return link

    return fill


async def test_a_request_that_finds_no_room_goes_elsewhere_and_what_runs_there_goes_on(
    stage: Any, replica: Any, kit: Any, no_room: Any
) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    running = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    no_room("r1")
    assert (await stage.ask(kit.chat(user="x" * 2000))).status == 200
    submit = one.submitted[0]
    one.send(kit.opened(submit), Data(submit.id, kit.EVENT, 1), Data(submit.id, kit.DONE), End(submit.id))
    await running.task
    assert running.body_text == kit.EVENT + kit.DONE
    assert (len(one.submitted), one.aborted, len(two.submitted)) == (1, [], 1)
    assert b"xi_replica_losses_total{" not in (await stage.control("GET", "/metrics")).body_text


async def test_a_request_that_finds_no_room_at_all_is_refused_and_only_that(stage: Any, replica: Any, kit: Any, no_room: Any) -> None:
    one = replica("r1", script=kit.answering())
    await stage.serve("m", one)
    link = no_room("r1")
    call = await stage.ask(kit.chat(user="x" * 2000))
    assert (call.status, call.error["code"], call.answer_headers["retry-after"]) == (502, "replica_lost", "1")
    assert "takes no more at the moment" in call.error["message"]
    assert (link.alive, link.open_streams, link.view.outstanding) == (True, 0, 0)
    assert (await stage.ask()).status == 200


async def test_replicas_without_room_are_no_losses_of_the_request(stage: Any, replica: Any, kit: Any, no_room: Any) -> None:
    full = [replica(f"r{n}", script=kit.answering()) for n in range(3)]
    await stage.serve("m", *full, replica("r3", script=kit.answering()))
    for one in full:
        no_room(one.replica_id)
    assert (await stage.ask(kit.chat(user="x" * 2000))).status == 200


async def test_a_replica_that_has_no_room_even_for_a_ping_is_lost(
    stage: Any, replica: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.serve("m", replica("r1"), replica("r2", script=kit.answering()))
    link: ReplicaLink = stage.gateway.table.models["m"].links["r1"]

    def full(message: bytes) -> None:
        raise ChannelFull("its queue is full and nothing was sent")

    monkeypatch.setattr(link._channel, "send", full)
    await kit.until(lambda: not link.alive)
    assert (await stage.ask()).status == 200


async def test_loss_in_a_stream_ends_it_with_a_typed_event(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    call = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    one.send(kit.opened(one.submitted[0]), Data(one.submitted[0].id, kit.EVENT, 1))
    await kit.until(lambda: call.parts)
    await one.close()
    async with asyncio.timeout(1):
        await call.task
    assert call.whole
    assert two.submitted == []
    event = call.body_text.removeprefix(kit.EVENT)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert json.loads(event[6:])["error"]["code"] == "replica_lost"
    assert b"[DONE]" not in event


async def test_a_silent_replica_is_lost_after_three_pings(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    await kit.until(lambda: one.pings >= 2)
    one.silent = True
    call = stage.start()
    began = asyncio.get_running_loop().time()
    await call.task
    assert call.status == 200
    assert asyncio.get_running_loop().time() - began < 3
    second = await stage.ask()
    assert second.status == 200
    assert len(one.submitted) == 1


async def test_a_lost_replica_is_dialled_again_and_must_answer_first(stage: Any, replica: Any, kit: Any) -> None:
    one = replica(script=kit.answering())
    await stage.serve("m", one)
    endpoint = one.listener.endpoint
    await one.close()
    model = stage.gateway.table.models["m"]
    await kit.until(lambda: not model.usable())
    assert (await stage.ask()).status == 503
    one.listen(endpoint)
    await kit.until(model.usable)
    assert (await stage.ask()).status == 200


async def test_another_life_at_the_same_endpoint_gets_nothing(stage: Any, replica: Any, kit: Any) -> None:
    one = replica(script=kit.answering())
    one.answering = "another-life"
    await stage.serve("m", one)
    await kit.until(lambda: not stage.gateway.table.models["m"].usable())
    assert (await stage.ask()).status == 503
    assert one.submitted == []


@pytest.mark.parametrize("load", [Load(draining=True), Load(healthy=False)])
async def test_draining_and_stuck_replicas_get_no_new_request(stage: Any, replica: Any, kit: Any, load: Load) -> None:
    one, two = replica("r1", script=kit.answering()), replica("r2", script=kit.answering())
    one.load = load
    await stage.serve("m", one, two)
    await kit.until(lambda: len(stage.gateway.table.models["m"].usable()) == 1)
    assert (await stage.ask()).status == 200
    assert one.submitted == []


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x93\x04\x01\x02", b"\x92\x04\x91\x93\x01\x01\x01", b"\xff" * 1000])
async def test_garbage_from_a_replica_is_a_loss_not_a_crash(stage: Any, replica: Any, kit: Any, garbage: bytes) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    call = stage.start()
    await kit.until(lambda: one.submitted)
    one.send_bytes(garbage)
    await call.task
    assert call.status == 200
    assert two.submitted


async def test_frames_of_unknown_requests_are_ignored(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start()
    await kit.until(lambda: one.submitted)
    one.send(Open(10**9, 200, "x"), Data(10**9, b"x"), End(10**9))
    one.answer(one.submitted[0])
    await call.task
    assert call.json == {"ok": True}


async def test_open_requests_finish_when_their_replica_leaves_the_table(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one)
    call = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    submit = one.submitted[0]
    one.send(kit.opened(submit), Data(submit.id, kit.EVENT, 1))
    await stage.serve("m", two)
    assert (await stage.ask()).status == 200
    pings = one.pings
    await kit.until(lambda: one.pings > pings)
    one.send(Data(submit.id, kit.DONE), End(submit.id))
    await call.task
    assert call.body_text == kit.EVENT + kit.DONE
    assert len(one.submitted) == 1
    await kit.until(lambda: not one.listener.channels)
