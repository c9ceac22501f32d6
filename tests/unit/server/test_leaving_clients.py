"""Clients that leave before their answer is whole: it is aborted, and nothing of it is held."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from xi_core.wire.frames import Data, End


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_before_the_answer_aborts_it(stage: Any, replica: Any, kit: Any, stream: bool) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start(kit.chat(stream=stream))
    await kit.until(lambda: one.submitted)
    call.leave()
    await kit.until(lambda: one.aborted == [one.submitted[0].id])
    await call.task
    assert stage.gateway.table.models["m"].open_requests == 0
    assert stage.gateway.table.models["m"].links["r1"].view.outstanding == 0


async def test_client_that_leaves_in_a_stream_aborts_it(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    one.send(kit.opened(one.submitted[0]), Data(one.submitted[0].id, kit.EVENT, 1))
    await kit.until(lambda: call.parts)
    call.leave()
    await kit.until(lambda: one.aborted == [one.submitted[0].id])
    await call.task
    one.send(Data(one.submitted[0].id, kit.EVENT, 1), End(one.submitted[0].id))
    metrics = (await stage.control("GET", "/metrics")).body_text
    assert b'xi_requests_total{route="/v1/chat/completions",model="m",status="499"} 1' in metrics


async def test_many_aborts_leak_nothing(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    for round_ in range(1, 6):
        calls = [stage.start(kit.chat(stream=n % 2 == 0)) for n in range(100)]
        await kit.until(lambda many=100 * round_: len(one.submitted) == many)
        for submit in one.submitted[-100::3]:
            one.send(kit.opened(submit), Data(submit.id, kit.EVENT, 1))
        for call in calls:
            call.leave()
        await asyncio.gather(*(call.task for call in calls))
    await kit.until(lambda: len(one.aborted) == 500)
    model = stage.gateway.table.models["m"]
    link = model.links["r1"]
    assert (link.open_streams, model.open_requests, link.view.outstanding, link.view.tokens) == (0, 0, 0, 0)
    assert stage.gateway.dispatcher.active == set()


async def test_a_whole_answer_is_not_aborted(stage: Any, replica: Any, kit: Any) -> None:
    one = replica(script=kit.answering())
    await stage.serve("m", one)
    call = await stage.ask()
    call.leave()
    pings = one.pings
    await kit.until(lambda: one.pings > pings)
    assert one.aborted == []
