"""Models that sleep, as a gateway sees them: no request goes there, the error says what to do, and its own routes know when it is so."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.cluster.messages import Sleep
from xi_core.errors import UnsupportedField
from xi_core.wire.frames import Load


def falls_asleep(*replicas: Any) -> Any:
    """What the supervisor does about an order: the replicas' next life signs tell it."""

    def obey(command: Sleep) -> None:
        for one in replicas:
            one.load = Load(slots=4, asleep=command.level)

    return obey


async def test_requests_pass_by_a_replica_that_sleeps(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1", script=kit.answering()), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    falls_asleep(one)(Sleep("m", 1))
    link = stage.gateway.table.models["m"].links["r1"]
    await kit.until(lambda: not link.fit)
    assert link.alive
    assert (await stage.ask()).status == 200
    assert (one.submitted, len(two.submitted)) == ([], 1)


async def test_a_model_that_sleeps_says_so_while_a_worker_of_it_is_away(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1")
    await stage.serve("m", one, state="PENDING")
    falls_asleep(one)(Sleep("m", 1))
    await kit.until(lambda: stage.gateway.table.models["m"].asleep)
    call = await stage.ask()
    assert (call.status, call.error["code"]) == (503, "model_asleep")


async def test_one_that_refuses_because_it_has_just_fallen_asleep_is_passed_by(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1", script=kit.answering(503, b'{"error":"asleep"}')), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    assert (await stage.ask()).json == {"ok": True}


async def test_sleep_and_wake_answer_once_requests_feel_it(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1", script=kit.answering())
    await stage.serve("m", one)
    stage.supervisor.on_sleep = falls_asleep(one)
    slept = await stage.control("POST", "/v1/models/m/sleep", {"level": 2})
    assert (slept.status, slept.json) == (200, {"model_uid": "m", "level": 2})
    refused = await stage.ask()
    assert (refused.status, refused.error["code"], refused.error["param"]) == (503, "model_asleep", "model")
    assert refused.error["message"] == "model 'm' is asleep; wake it with `xi wake m`, or POST /v1/models/m/wake"
    assert one.submitted == []
    woken = await stage.control("POST", "/v1/models/m/wake")
    assert (woken.status, woken.json) == (200, {"model_uid": "m", "level": 0})
    assert (await stage.ask()).status == 200
    assert [(asked.uid, asked.level) for asked in stage.supervisor.asked if isinstance(asked, Sleep)] == [("m", 2), ("m", 0)]


async def test_the_level_is_1_unless_it_is_said(stage: Any, replica: Any) -> None:
    one = replica("r1")
    await stage.serve("m", one)
    stage.supervisor.on_sleep = falls_asleep(one)
    assert (await stage.control("POST", "/v1/models/m/sleep")).json == {"model_uid": "m", "level": 1}


@pytest.mark.parametrize("body", [{"level": 0}, {"level": 3}, {"level": "deep"}, {"depth": 1}])
async def test_a_wrong_order_is_refused_by_name(stage: Any, body: dict[str, Any]) -> None:
    call = await stage.control("POST", "/v1/models/m/sleep", body)
    assert (call.status, call.error["param"]) == (400, next(iter(body)))
    assert stage.supervisor.asked == []


async def test_the_supervisors_refusal_reaches_the_client(stage: Any) -> None:
    def refuse(command: Sleep) -> None:
        raise UnsupportedField("model 'm' can't sleep on engine e: launch it with --x", param="model_uid")

    stage.supervisor.on_sleep = refuse
    call = await stage.control("POST", "/v1/models/m/sleep")
    assert (call.status, call.error["code"], call.error["param"]) == (400, "unsupported_field", "model_uid")
