"""What the gateway itself answers with an error: requests that it refuses, its bounds, and its own failures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest


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
