"""The token path: routing, answers, retries, losses, aborts, slow clients, bounds."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from xi_core.wire.frames import Data, End, Load, Open
from xi_server import replica_link
from xi_server.limits import Backlog

EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def opened(kit: Any, submit: Any) -> Open:
    return Open(submit.id, 200, kit.SSE, 3)


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
    one.send(opened(kit, submit), Data(submit.id, EVENT, 1))
    await kit.until(lambda: call.parts)
    assert (call.status, call.parts, call.whole) == (200, [EVENT], False)
    assert call.answer_headers["content-type"] == kit.SSE
    assert call.answer_headers["cache-control"] == "no-cache"
    assert "content-length" not in call.answer_headers
    one.send(Data(submit.id, EVENT, 1))
    one.send(Data(submit.id, EVENT + DONE, 1), End(submit.id, "stop"))
    await call.task
    assert call.body_text == 3 * EVENT + DONE
    assert call.whole
    assert kit.FirstRouter.made[0].ended == [("r1", 3)]


async def test_parts_that_wait_are_sent_as_one(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    submit = one.submitted[0]
    one.send(opened(kit, submit), *(Data(submit.id, EVENT, 1) for _ in range(5)), End(submit.id, "stop"))
    await call.task
    assert call.parts == [5 * EVENT]


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


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b'{"model": }', None, "byte 10"),
        (b"{", None, "byte 1"),
        (b"", None, "not valid JSON"),
        (b"[]", None, "Expected `object`"),
        (b"nonsense", None, "not valid JSON"),
        (b'{"model":"\xff"}', None, "UTF-8"),
        (b'{"model":"m","messages":' + b"[" * 100_000, None, "nested too deeply"),
        (b'{"messages":[]}', "model", "names no model"),
        (b'{"model":null}', "model", "Expected `str`"),
        (b'{"model":"m","stream":"yes"}', "stream", "Expected `bool"),
        (b'{"model":"m","max_tokens":1.5}', "max_tokens", "Expected `int"),
    ],
)
async def test_bad_bodies_are_refused_in_words(stage: Any, replica: Any, kit: Any, body: bytes, param: str | None, words: str) -> None:
    one = replica(script=kit.answering())
    await stage.serve("m", one)
    call = await stage.ask(body)
    assert call.status == 400
    assert (call.error["param"], call.error["type"]) == (param, "invalid_request_error")
    assert words in call.error["message"]
    assert one.submitted == []
    assert (await stage.ask()).status == 200


async def test_unknown_model_names_the_running_ones(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica())
    call = await stage.ask(kit.chat("other"))
    assert (call.status, call.error["code"], call.error["param"]) == (404, "model_not_found", "model")
    assert "'m'" in call.error["message"]


@pytest.mark.parametrize("state", ["PENDING", "PREPARING", "STARTING", "LOADING", "FAILED"])
async def test_model_that_is_not_ready_says_why(stage: Any, kit: Any, state: str) -> None:
    await stage.serve("m", state=state, detail="weights 40 %")
    call = await stage.ask()
    assert (call.status, call.error["code"]) == (503, "unavailable")
    assert state in call.error["message"]
    assert "weights 40 %" in call.error["message"]
    assert int(call.answer_headers["retry-after"]) >= 1


async def test_body_over_the_limit_is_refused(make_stage: Any, replica: Any, kit: Any) -> None:
    stage = await make_stage(max_body=2048)
    await stage.serve("m", replica(script=kit.answering()))
    assert (await stage.ask(kit.chat(user="x" * 1000))).status == 200
    call = await stage.ask(kit.chat(user="x" * 3000))
    assert (call.status, call.error["code"]) == (413, "payload_too_large")
    declared = await stage.ask(b"", headers=[(b"content-length", b"1000000")])
    assert declared.status == 413


async def test_queue_of_a_model_is_bounded(make_stage: Any, replica: Any, kit: Any) -> None:
    stage = await make_stage(queue_size=2)
    one, other = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one)
    await stage.serve("n", other)
    calls = [stage.start() for _ in range(6)]  # four slots and two that wait
    await kit.until(lambda: len(one.submitted) == 6)
    refused = await stage.ask()
    assert (refused.status, refused.error["code"], refused.answer_headers["retry-after"]) == (429, "overloaded", "1")
    assert b'xi_requests_refused_total{model="m"} 1' in (await stage.control("GET", "/metrics")).body_text
    assert (await stage.ask(kit.chat("n"))).status == 200
    one.answer(one.submitted[0])
    await calls[0].task
    one.script = kit.answering()
    assert (await stage.ask()).status == 200
    for submit in one.submitted[1:6]:
        one.answer(submit)
    await asyncio.gather(*(call.task for call in calls))


async def test_no_answer_by_the_deadline_is_a_504_and_an_abort(make_stage: Any, replica: Any, kit: Any) -> None:
    stage = await make_stage(request_timeout=0.05)
    one = replica()
    await stage.serve("m", one)
    call = await stage.ask()
    assert (call.status, call.error["code"]) == (504, "deadline_exceeded")
    await kit.until(lambda: one.aborted == [one.submitted[0].id])


async def test_other_methods_are_405(stage: Any) -> None:
    call = await stage.ask(b"", method="GET")
    assert (call.status, call.error["code"], call.answer_headers["allow"]) == (405, "method_not_allowed", "POST")


# ---- losses and retries ---------------------------------------------------------------------------


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


async def test_loss_in_a_stream_ends_it_with_a_typed_event(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    call = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    one.send(opened(kit, one.submitted[0]), Data(one.submitted[0].id, EVENT, 1))
    await kit.until(lambda: call.parts)
    await one.close()
    async with asyncio.timeout(1):
        await call.task
    assert call.whole
    assert two.submitted == []
    event = call.body_text.removeprefix(EVENT)
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
    one.send(opened(kit, submit), Data(submit.id, EVENT, 1))
    await stage.serve("m", two)
    assert (await stage.ask()).status == 200
    pings = one.pings
    await kit.until(lambda: one.pings > pings)
    one.send(Data(submit.id, DONE), End(submit.id))
    await call.task
    assert call.body_text == EVENT + DONE
    assert len(one.submitted) == 1
    await kit.until(lambda: not one.listener.channels)


# ---- clients that leave or don't read -------------------------------------------------------------


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
    one.send(opened(kit, one.submitted[0]), Data(one.submitted[0].id, EVENT, 1))
    await kit.until(lambda: call.parts)
    call.leave()
    await kit.until(lambda: one.aborted == [one.submitted[0].id])
    await call.task
    one.send(Data(one.submitted[0].id, EVENT, 1), End(one.submitted[0].id))
    metrics = (await stage.control("GET", "/metrics")).body_text
    assert b'xi_requests_total{route="/v1/chat/completions",model="m",status="499"} 1' in metrics


async def test_many_aborts_leak_nothing(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    for round_ in range(1, 6):
        calls = [stage.start(kit.chat(stream=n % 2 == 0)) for n in range(100)]
        await kit.until(lambda many=100 * round_: len(one.submitted) == many)
        for submit in one.submitted[-100::3]:
            one.send(opened(kit, submit), Data(submit.id, EVENT, 1))
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


async def stalled_stream(stage: Any, one: Any, kit: Any) -> Any:
    """A stream whose client has stopped to read."""
    call = stage.start(kit.chat(stream=True), stalled=True)
    await kit.until(lambda: one.submitted)
    submit = one.submitted[-1]
    one.send(opened(kit, submit), Data(submit.id, EVENT, 1))
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


async def test_a_client_that_never_finishes_its_request_is_cut_off(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = stage.start()
    call.sent_body = True  # nothing comes, and the connection stays
    while not stage.gateway.dispatcher.active:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    stage.gateway.dispatcher.tick(0.0)
    assert not call.aborted
    monkeypatch.setattr("xi_server.dispatch.UPLOAD_TIMEOUT", -1.0)
    stage.gateway.dispatcher.tick(0.0)
    assert call.aborted
    await asyncio.wait_for(call.task, 5)
    assert not stage.gateway.dispatcher.active


async def test_slow_client_that_reads_again_gets_everything(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = await stalled_stream(stage, one, kit)
    for _ in range(10):
        one.send(Data(one.submitted[0].id, EVENT, 1))
    backlog = stage.gateway.dispatcher.backlog
    await kit.until(lambda: backlog.held == 10 * len(EVENT))
    call.reading.set()
    one.send(Data(one.submitted[0].id, DONE), End(one.submitted[0].id))
    await call.task
    assert call.body_text == 11 * EVENT + DONE
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
    assert (backlog.per_stream, backlog.total, backlog.stall) == (1 << 20, 256 << 20, 30.0)
    assert (replica_link.PING_INTERVAL, replica_link.MISSED_PINGS) == (0.25, 3)


# ---- the gateway's own end ------------------------------------------------------------------------


async def test_cancelled_request_is_answered_and_aborted(stage: Any, replica: Any, kit: Any) -> None:
    one = replica()
    await stage.serve("m", one)
    call = stage.start()
    await kit.until(lambda: one.submitted)
    call.task.cancel()
    await call.task
    assert (call.status, call.error["code"]) == (503, "unavailable")
    await kit.until(lambda: one.aborted == [one.submitted[0].id])


async def test_unexpected_failure_is_a_500_with_the_request_id(stage: Any, replica: Any, kit: Any, caplog: Any) -> None:
    await stage.serve("m", replica(script=kit.answering()))

    def broken(*_: Any) -> str:
        raise ZeroDivisionError("in the router")

    kit.FirstRouter.made[0].choose = broken
    call = await stage.ask()
    assert (call.status, call.error["code"]) == (500, "internal_error")
    assert call.answer_headers["x-request-id"] in call.error["message"]
    assert "in the router" not in call.error["message"]
    assert "in the router" in caplog.text
