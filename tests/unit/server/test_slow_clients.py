"""Clients that don't read their streams: buffers, their bounds, and who is cut off."""

from __future__ import annotations

from typing import Any

from xi_core.wire.frames import Data, End, Open
from xi_server import replica_link
from xi_server.limits import Backlog


async def stalled_stream(stage: Any, one: Any, kit: Any) -> Any:
    """A stream whose client has stopped to read."""
    call = stage.start(kit.chat(stream=True), stalled=True)
    await kit.until(lambda: one.submitted)
    submit = one.submitted[-1]
    one.send(kit.opened(submit), Data(submit.id, kit.EVENT, 1))
    exchange = next(iter(stage.gateway.dispatcher.active))
    await kit.until(lambda: exchange.slow.blocked_since)
    return call


async def test_slow_client_over_its_buffer_is_cut_off_alone(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = await stalled_stream(stage, one, kit)
    backlog = stage.gateway.dispatcher.backlog
    one.send(Data(one.submitted[0].id, b"x" * (backlog.per_stream - 10), 1))
    await kit.until(lambda: backlog.held == backlog.per_stream - 10)
    assert not call.aborted
    one.script = kit.answering()
    assert (await stage.ask()).status == 200
    one.send(Data(one.submitted[0].id, b"x" * 11, 1))
    await kit.until(lambda: call.aborted)
    await call.task
    assert backlog.held == 0
    await kit.until(lambda: one.aborted == [one.submitted[0].id])


async def test_slow_client_that_reads_again_gets_everything(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = await stalled_stream(stage, one, kit)
    for _ in range(10):
        one.send(Data(one.submitted[0].id, kit.EVENT, 1))
    backlog = stage.gateway.dispatcher.backlog
    await kit.until(lambda: backlog.held == 10 * len(kit.EVENT))
    call.reading.set()
    one.send(Data(one.submitted[0].id, kit.DONE), End(one.submitted[0].id))
    await call.task
    assert call.body_text == 11 * kit.EVENT + kit.DONE
    assert backlog.held == 0


async def test_client_that_reads_nothing_for_too_long_is_cut_off(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    stage.gateway.dispatcher.backlog.stall = 0.05
    call = await stalled_stream(stage, one, kit)
    await kit.until(lambda: call.aborted)
    await call.task
    await kit.until(lambda: one.aborted == [one.submitted[0].id])
    assert b'xi_slow_clients_total{model="m"} 1' in (await stage.control("GET", "/metrics")).body_text


async def test_time_in_which_the_gateway_stood_still_is_not_the_clients(stage: Any, replica: Any, kit: Any) -> None:
    """Looks are counted, as those at connections are: after a pause the clients have to get a chance to read."""
    one = replica()
    await stage.serve("m", one)
    stage.gateway.dispatcher.backlog.stall = 3 * replica_link.PING_INTERVAL
    call = await stalled_stream(stage, one, kit)
    (exchange,) = stage.gateway.dispatcher.active
    exchange.slow.blocked_since -= 3600
    pings = one.pings
    await kit.until(lambda: one.pings >= pings + 2)
    assert not call.aborted
    await kit.until(lambda: call.aborted)
    await call.task


async def test_gateway_wide_cap_holds(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    stage.gateway.dispatcher.backlog.total = 1000
    call = await stalled_stream(stage, one, kit)
    one.send(Data(one.submitted[0].id, b"x" * 1001, 1))
    await kit.until(lambda: call.aborted)
    await call.task
    assert stage.gateway.dispatcher.backlog.held == 0


async def test_direct_writes_pass_the_coroutine_and_keep_the_order(stage: Any, replica: Any, kit: Any) -> None:
    """Pieces written directly, pieces that the server refuses because the client doesn't read, and directly again."""
    one, written, reads = replica(), [], [True]

    def direct(call: Any) -> Any:
        def write(data: bytes) -> bool:
            if reads[0]:
                written.append(data)
                call.parts.append(data)
            return reads[0]

        return write

    await stage.serve("m", one)
    call = stage.start(kit.chat(stream=True), direct=direct)
    await kit.until(lambda: one.submitted)
    i = one.submitted[0].id
    events = [b"data: %d\n\n" % n for n in range(5)]
    one.send(Open(i, 200, kit.SSE), Data(i, events[0], 1))
    await kit.until(lambda: call.parts == events[:1])
    one.send(Data(i, events[1], 1))
    await kit.until(lambda: call.parts == events[:2])
    reads[0] = False
    one.send(Data(i, events[2], 1))
    await kit.until(lambda: call.parts == events[:3])
    reads[0] = True
    one.send(Data(i, events[3], 1))
    one.send(Data(i, events[4], 1), End(i))
    await call.task
    assert call.body_text == b"".join(events)
    assert call.whole
    assert written == [events[1], events[3], events[4]]
    assert kit.FirstRouter.made[0].ended == [("r1", 5)]


def test_the_backlogs_bounds_are_as_documented() -> None:
    backlog = Backlog()
    assert (backlog.per_stream, backlog.total, backlog.whole, backlog.stall) == (1 << 20, 256 << 20, 1 << 30, 30.0)
    assert (replica_link.PING_INTERVAL, replica_link.MISSED_PINGS) == (0.25, 3)
