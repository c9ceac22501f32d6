"""The token path of requests that are answered: routing, whole answers and streams."""

from __future__ import annotations

import asyncio
from typing import Any

from xi_core.wire.frames import Data, End, Load, Open


async def test_whole_answer_is_passed_on_as_it_is(stage: Any, replica: Any, kit: Any) -> None:
    one = replica(script=kit.answering(body=b'{"any":  "bytes"}'))
    await stage.serve("m", one)
    body = kit.chat(temperature=0.5)
    call = await stage.ask(body)
    assert (call.status, call.body_text, call.whole) == (200, b'{"any":  "bytes"}', True)
    assert call.answer_headers["content-length"] == "17"
    assert call.answer_headers["content-type"] == "application/json"
    assert call.answer_headers["x-request-id"].startswith("req-")
    assert one.submitted[0].body == body
    assert one.submitted[0].route == "/v1/chat/completions"
    assert one.aborted == []


async def test_request_ids_differ(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering()))
    ids = {(await stage.ask()).answer_headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


async def test_status_and_retry_after_of_the_replica_reach_the_client(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering(429, b'{"error":{}}', retry_after=1.2)))
    call = await stage.ask()
    assert (call.status, call.body_text, call.answer_headers["retry-after"]) == (429, b'{"error":{}}', "2")


async def test_stream_waits_for_open_then_copies_events(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    assert call.status == 0
    submit = one.submitted[0]
    one.send(kit.opened(submit), Data(submit.id, kit.EVENT, 1))
    await kit.until(lambda: call.parts)
    assert (call.status, call.parts, call.whole) == (200, [kit.EVENT], False)
    assert call.answer_headers["content-type"] == kit.SSE
    assert call.answer_headers["cache-control"] == "no-cache"
    assert "content-length" not in call.answer_headers
    one.send(Data(submit.id, kit.EVENT, 1))
    one.send(Data(submit.id, kit.EVENT + kit.DONE, 1), End(submit.id, "stop"))
    await call.task
    assert call.body_text == 3 * kit.EVENT + kit.DONE
    assert call.whole
    assert kit.FirstRouter.made[0].ended == [("r1", 3)]


async def test_parts_that_wait_are_sent_as_one(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    submit = one.submitted[0]
    one.send(kit.opened(submit), *(Data(submit.id, kit.EVENT, 1) for _ in range(5)), End(submit.id, "stop"))
    await call.task
    assert call.parts == [5 * kit.EVENT]


async def test_streams_of_one_step_reach_their_own_clients(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    calls = [stage.start(kit.chat(stream=True)) for _ in range(8)]
    await kit.until(lambda: len(one.submitted) == 8)
    ids = [submit.id for submit in one.submitted]
    assert len(set(ids)) == 8
    one.send(*(frame for i in ids for frame in (Open(i, 200, kit.SSE), Data(i, b"data: %d\n\n" % i, 1), End(i))))
    await asyncio.gather(*(call.task for call in calls))
    assert sorted(call.body_text for call in calls) == sorted(b"data: %d\n\n" % i for i in ids)


async def test_router_sees_the_request_and_live_counters(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    one.load = Load(running=2, waiting=1, slots=7)
    await stage.serve("m", one)
    link = stage.gateway.table.models["m"].links["r1"]
    await kit.until(lambda: link.load.slots == 7)
    call = stage.start(kit.chat(max_completion_tokens=11, max_tokens=5))
    await kit.until(lambda: one.submitted)
    router = kit.FirstRouter.made[0]
    assert (router.request.uid, router.request.route, router.request.max_tokens) == ("m", "/v1/chat/completions", 11)
    view = router.views[0]
    assert (view.outstanding, view.tokens, view.running, view.waiting, view.slots) == (1, router.request.tokens, 2, 1, 7)
    assert router.request.tokens == 11 + round(len(one.submitted[0].body) / 32)
    assert router.request.prefix == ()
    one.answer(one.submitted[0])
    await call.task
    assert (view.outstanding, view.tokens) == (0, 0)
    assert router.started == ["r1"]


async def test_a_router_that_names_no_replica_is_overruled(stage: Any, replica: Any, kit: Any, caplog: Any) -> None:
    await stage.serve("m", replica(script=kit.answering()))
    kit.FirstRouter.made[0].choose = lambda request, replicas: "nobody"
    assert (await stage.ask()).status == 200
    assert "chose 'nobody'" in caplog.text
