"""Answers that are not streamed, to clients that don't read them: sent in pieces, each in its time."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from xi_core.wire.frames import Data, End, Open
from xi_server.asgi import PIECE
from xi_server.replica_link import Stream

BODY = bytes(range(256)) * 1000


async def test_a_whole_answer_is_sent_in_pieces(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering(body=BODY)))
    call = await stage.ask()
    assert call.body_text == BODY
    assert call.whole
    assert call.answer_headers["content-length"] == str(len(BODY))
    assert len(call.parts) == 4
    assert {len(part) for part in call.parts[:-1]} == {PIECE}


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1])
async def test_a_piece_is_never_empty_where_there_is_another(stage: Any, replica: Any, kit: Any, size: int) -> None:
    await stage.serve("m", replica(script=kit.answering(body=b"x" * size)))
    call = await stage.ask()
    assert [len(part) for part in call.parts] == ([PIECE, 1] if size > PIECE else [size])


async def test_who_reads_nothing_of_a_whole_answer_is_cut_off(stage: Any, replica: Any, kit: Any) -> None:
    one = replica(script=kit.answering(body=BODY))
    await stage.serve("m", one)
    stage.gateway.dispatcher.backlog.stall = 0.05
    call = stage.start(stalled=True)
    await kit.until(lambda: call.aborted)
    await call.task
    assert not stage.gateway.dispatcher.active
    assert one.aborted == []  # it had long answered
    metrics = (await stage.control("GET", "/metrics")).body_text
    assert b'xi_slow_clients_total{model="m"} 1' in metrics
    assert b'xi_requests_total{route="/v1/chat/completions",model="m",status="499"} 1' in metrics


async def test_who_reads_late_gets_all_of_it(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start(stalled=True)
    await kit.until(lambda: one.submitted)
    i = one.submitted[0].id
    one.send(Open(i, 200, "application/json", 3, None), Data(i, BODY, 1), End(i, "stop"))
    (exchange,) = stage.gateway.dispatcher.active
    await kit.until(lambda: exchange.slow.blocked_since)
    call.reading.set()
    await call.task
    assert call.body_text == BODY
    assert not call.aborted
    assert exchange.slow.blocked_since == 0.0


async def taking(stage: Any, kit: Any) -> Any:
    """A client that has stopped to read the answer, which is whole."""
    call, others = stage.start(stalled=True), set(stage.gateway.dispatcher.active)
    await kit.until(lambda: [one for one in stage.gateway.dispatcher.active - others if one.slow.blocked_since])
    return call


async def test_who_takes_a_whole_answer_is_no_load_of_its_replica(make_stage: Any, replica: Any, kit: Any) -> None:
    """The replica is idle: others may ask it, however slowly these take what they have."""
    stage = await make_stage(queue_size=0)
    await stage.serve("m", replica(script=kit.answering(body=BODY)))
    takers = [await taking(stage, kit) for _ in range(5)]  # one more than it has slots
    model = stage.gateway.table.models["m"]
    view = model.links["r1"].view
    assert (model.open_requests, view.outstanding, view.tokens) == (0, 0, 0)
    assert kit.FirstRouter.made[0].ended == [("r1", 2)] * 5
    assert (await stage.ask()).status == 200
    for call in takers:
        call.reading.set()
        await call.task
        assert call.body_text == BODY


async def test_a_whole_answer_is_in_memory_once_while_it_is_taken(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    one.script = lambda replica, it: replica.send(Open(it.id, 200, "application/json"), *[Data(it.id, BODY)] * 3, End(it.id))
    call = await taking(stage, kit)
    assert not [held for held in gc.get_objects() if type(held) is Stream and held.parts]
    call.reading.set()
    await call.task
    assert call.body_text == 3 * BODY


async def test_what_all_take_is_bounded_and_who_takes_longest_goes(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering(body=BODY)))
    stage.gateway.dispatcher.backlog.whole = 2 * len(BODY)
    first, second = await taking(stage, kit), await taking(stage, kit)
    assert not first.aborted
    third = await taking(stage, kit)
    await kit.until(lambda: first.aborted)
    await first.task
    assert len(stage.gateway.dispatcher.active) == 2
    for call in (second, third):
        call.reading.set()
        await call.task
        assert call.body_text == BODY


async def test_a_whole_answer_that_the_end_of_the_server_breaks_is_cut_off(stage: Any, replica: Any, kit: Any) -> None:
    """Nothing is written into it: it has a length, and is no stream of events."""
    await stage.serve("m", replica(script=kit.answering(body=BODY)))
    call = await taking(stage, kit)
    call.task.cancel()
    await kit.until(lambda: call.aborted)
    await call.task
    assert call.parts == []
    metrics = (await stage.control("GET", "/metrics")).body_text
    assert b'xi_requests_total{route="/v1/chat/completions",model="m",status="503"} 1' in metrics


async def test_who_is_found_by_the_connection_is_told_by_the_request(stage: Any, replica: Any, kit: Any, caplog: Any) -> None:
    """Whoever looks first, the log names the request and the metric its model."""
    await stage.serve("m", replica(script=kit.answering(body=BODY)))
    call = await taking(stage, kit)
    call.state["drop"]("it has read nothing for 30 s")
    await call.task
    assert call.aborted
    assert stage.gateway.metrics.slow_clients.values == {("m",): 1}
    assert f"request {call.answer_headers['x-request-id']}: the client is cut off, it has read nothing for 30 s" in caplog.text
    assert "drop" not in call.state  # an idle connection would hold the request
