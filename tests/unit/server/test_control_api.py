"""The control API: launching, listing, ending, probes, documents, errors."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from xi_core.api.control import ClusterInfo, EngineStatus, LaunchSpec, ModelStatus, ProcessInfo, ReplicaStatus, launches
from xi_core.api.openai import ModelList
from xi_core.errors import ChannelClosed, UnknownEngine


async def test_launch_waits_until_the_model_answers(stage: Any, replica: Any, kit: Any) -> None:
    call = kit.control("POST", "/v1/models", {"model_name": "xi-tiny", "n_ctx": 64})
    call.start(stage.app)
    await kit.until(lambda: stage.supervisor.launched)
    assert stage.supervisor.launched[0].options == {"n_ctx": 64}
    stage.supervisor.serve("xi-tiny", state="LOADING")
    await kit.until(lambda: len(stage.supervisor.asked) >= 2)
    assert call.status == 0
    stage.supervisor.serve("xi-tiny", replica(script=kit.answering()))
    await call.task
    assert (call.status, call.json) == (200, {"model_uid": "xi-tiny"})
    assert (await stage.ask(kit.chat("xi-tiny"))).status == 200


async def test_launch_without_waiting(stage: Any, kit: Any) -> None:
    call = await stage.control("POST", "/v1/models", {"model_name": "xi-tiny", "model_uid": "u"}, b"wait_ready=false")
    assert (call.status, call.json) == (200, {"model_uid": "u"})
    assert stage.supervisor.asked == []


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [("FAILED", 500, "launch_failed"), ("CANCELLED", 409, "launch_cancelled"), ("STOPPING", 409, "launch_cancelled")],
)
async def test_launch_that_ends_badly_says_so(stage: Any, kit: Any, state: str, status: int, code: str) -> None:
    call = kit.control("POST", "/v1/models", {"model_name": "xi-tiny"})
    call.start(stage.app)
    await kit.until(lambda: stage.supervisor.asked)
    stage.supervisor.serve("xi-tiny", state=state, detail="out of memory")
    await call.task
    assert (call.status, call.error["code"]) == (status, code)
    if state == "FAILED":
        assert call.error["message"] == "out of memory"


async def test_launch_that_is_terminated_while_somebody_waits(stage: Any, kit: Any) -> None:
    call = kit.control("POST", "/v1/models", {"model_name": "xi-tiny"})
    call.start(stage.app)
    await kit.until(lambda: stage.supervisor.asked)
    assert (await stage.control("DELETE", "/v1/models/xi-tiny")).status == 200
    await call.task
    assert (call.status, call.error["code"]) == (409, "launch_cancelled")


async def partly_away(stage: Any, **fields: Any) -> Any:
    """The answer to one who launches again what was READY, while a worker of it is away."""

    async def known(spec: LaunchSpec) -> None:
        missing = ReplicaStatus(replica_id="m-1", state="PENDING", stage="worker w1 is away")
        status = stage.supervisor.statuses["m"]
        stage.supervisor.statuses["m"] = msgspec.structs.replace(status, state="PENDING", stuck=True, replicas=[missing], **fields)

    stage.supervisor.on_launch = known
    async with asyncio.timeout(5):
        return await stage.control("POST", "/v1/models", {"model_name": "xi-tiny", "model_uid": "m"})


async def test_what_is_stuck_while_a_part_of_it_serves_is_not_waited_for(stage: Any, replica: Any) -> None:
    await stage.serve("m", replica(), state="PENDING")
    call = await partly_away(stage, ready_replicas=1)
    assert (call.status, call.json) == (200, {"model_uid": "m", "existed": True})


async def test_what_is_stuck_and_does_not_serve_is_given_up_with_the_reason(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "STUCK", 0.0)
    call = await partly_away(stage)
    assert (call.status, call.error["message"]) == (503, "none of the replicas of model 'm' serves: worker w1 is away")


async def test_client_that_leaves_ends_only_its_wait(stage: Any, kit: Any) -> None:
    call = kit.control("POST", "/v1/models", {"model_name": "xi-tiny"})
    call.start(stage.app)
    await kit.until(lambda: stage.supervisor.asked)
    call.leave()
    async with asyncio.timeout(5):
        await call.task
    assert "xi-tiny" in stage.supervisor.statuses


async def test_wait_ends_when_the_server_stops(stage: Any, kit: Any) -> None:
    call = kit.control("POST", "/v1/models", {"model_name": "xi-tiny"})
    call.start(stage.app)
    await kit.until(lambda: stage.supervisor.asked)
    stage.gateway.stopping = True
    async with asyncio.timeout(5):
        await call.task
    assert call.status == 503


async def test_refusal_of_the_supervisor_reaches_the_client(stage: Any, kit: Any) -> None:
    async def refuse(spec: Any) -> None:
        raise UnknownEngine("unknown engine 'x'; known: llama.cpp", param="model_engine")

    stage.supervisor.on_launch = refuse
    call = await stage.control("POST", "/v1/models", {"model_name": "xi-tiny", "model_engine": "x"})
    assert (call.status, call.error["code"], call.error["param"]) == (400, "unknown_engine", "model_engine")
    assert call.json["detail"] == call.error["message"]


async def test_bad_launch_is_refused_before_the_supervisor_hears_of_it(stage: Any) -> None:
    call = await stage.control("POST", "/v1/models", {"model_name": "xi-tiny", "replica": 0})
    assert (call.status, call.error["param"]) == (400, "replica")
    assert stage.supervisor.launched == []


async def test_wrong_query_is_a_400_that_names_it(stage: Any) -> None:
    call = await stage.control("POST", "/v1/models", {"model_name": "xi-tiny"}, b"wait_ready=perhaps")
    assert (call.status, call.error["param"], call.error["type"]) == (400, "wait_ready", "invalid_request_error")


@pytest.mark.parametrize(
    ("method", "path", "body", "query", "param"),
    [
        ("GET", "/v1/models/m/logs", None, b"rank=-1", "rank"),
        ("GET", "/v1/models/m/logs", None, b"replica=-1", "replica"),
        ("GET", "/v1/models/m/logs", None, b"start=1" + 30 * b"0", None),
        ("POST", "/v1/models", {"model_name": "xi-tiny", "n_gpu": 10**30}, b"", None),
        ("POST", "/v1/models", {"model_name": "xi-tiny", "batch_size": 10**30}, b"", None),
    ],
)
async def test_numbers_that_cant_be_are_the_requests_fault(
    stage: Any, method: str, path: str, body: Any, query: bytes, param: str | None
) -> None:
    call = await stage.control(method, path, body, query)
    assert (call.status, call.error["param"], call.error["code"]) == (400, param, "invalid_request")
    assert stage.supervisor.launched == []


async def test_list_and_get(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica())
    listed = msgspec.json.decode((await stage.control("GET", "/v1/models")).body_text, type=ModelList)
    assert [(model.id, model.state, model.model_engine, model.created) for model in listed.data] == [
        ("m", "READY", "llama.cpp", 1700000000)
    ]
    assert listed.data[0].endpoints == ["/v1/chat/completions", "/v1/completions"]
    one = await stage.control("GET", "/v1/models/m")
    assert msgspec.json.decode(one.body_text, type=ModelStatus).state == "READY"
    plain = one.json
    assert (plain["id"], plain["object"], plain["owned_by"]) == ("m", "model", "xi")
    assert (plain["model_type"], plain["model_name"], plain["model_ability"]) == ("LLM", "xi-tiny", ["chat", "generate"])


async def test_the_list_says_why_a_launch_is_not_ready(stage: Any, replica: Any) -> None:
    stage.supervisor.set_status("bad", "FAILED", error="the weights are not to my taste")
    await stage.serve("m", replica())
    waiting = ReplicaStatus(replica_id="w-0", state="PENDING", stage="waiting: no worker")
    stage.supervisor.set_status("w", "PENDING")
    stage.supervisor.statuses["w"].replicas = [waiting]
    listed = (await stage.control("GET", "/v1/models")).json["data"]
    told = {"bad": "the weights are not to my taste", "m": "", "w": "waiting: no worker"}
    assert {model["id"]: model["detail"] for model in listed} == told
    assert (await stage.control("GET", "/v1/models/w")).json["detail"] == "waiting: no worker"


async def test_get_and_delete_of_an_unknown_model(stage: Any) -> None:
    for method in ("GET", "DELETE"):
        call = await stage.control(method, "/v1/models/none")
        assert (call.status, call.error["code"]) == (404, "model_not_found")


async def test_deleted_model_is_gone_for_the_next_request(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering()))
    assert (await stage.control("DELETE", "/v1/models/m")).status == 200
    assert (await stage.ask()).status == 404


async def test_a_deleted_launch_that_was_never_ready_is_not_waited_for(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in the routing table as CANCELLED, for its reason to be read."""
    monkeypatch.setattr("xi_server.routes.models.SETTLE", 30.0)
    await stage.serve("m", state="CANCELLED")
    monkeypatch.setattr(stage.supervisor, "publish", lambda *_, **__: None)
    async with asyncio.timeout(5):
        assert (await stage.control("DELETE", "/v1/models/m")).status == 200


async def test_engines(stage: Any) -> None:
    stage.supervisor.engines = [EngineStatus(name="llama.cpp", available=True, reason="1.0", formats=["ggufv2"], plugin="p", model="yes")]
    call = await stage.control("GET", "/v1/engines", query=b"model=xi-tiny")
    assert msgspec.json.decode(call.body_text, type=list[EngineStatus])[0].model == "yes"
    assert stage.supervisor.asked[-1].model == LaunchSpec(model_name="xi-tiny")


async def test_cluster_info_has_this_gateway(stage: Any) -> None:
    stage.supervisor.processes = [ProcessInfo(role="supervisor", pid=1)]
    found = msgspec.json.decode((await stage.control("GET", "/v1/cluster/info")).body_text, type=ClusterInfo)
    assert [process.role for process in found.processes] == ["supervisor", "gateway"]


async def test_health_and_readiness(stage: Any, replica: Any, kit: Any) -> None:
    assert (await stage.control("GET", "/health")).json["status"] == "ok"
    assert (await stage.control("GET", "/ready")).json == {"ready": True, "reasons": []}
    await stage.serve("loading", state="LOADING")
    assert (await stage.control("GET", "/ready")).status == 200
    one = replica()
    await stage.serve("m", one)
    assert (await stage.control("GET", "/ready")).status == 200
    await one.close()
    await kit.until(lambda: not stage.gateway.table.models["m"].usable())
    call = await stage.control("GET", "/ready")
    assert (call.status, call.json["reasons"]) == (503, ["no replica of model 'm' answers"])
    stage.supervisor.serve("m", one, state="PENDING")  # a worker of it is away, the part that is here isn't reached either
    await kit.until(lambda: stage.gateway.table.models["m"].route.state == "PENDING")
    assert (await stage.control("GET", "/ready")).status == 503


async def test_while_the_supervisor_is_away(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering()))
    await stage.supervisor.close()
    await kit.until(lambda: not stage.gateway.supervisor.subscribed.is_set())
    assert (await stage.ask()).status == 200
    assert [model["id"] for model in (await stage.control("GET", "/v1/models")).json["data"]] == ["m"]
    launch = await stage.control("POST", "/v1/models", {"model_name": "x"})
    assert (launch.status, launch.error["code"]) == (503, "unavailable")
    assert "supervisor" in launch.error["message"]
    ready = await stage.control("GET", "/ready")
    assert (ready.status, ready.json["reasons"]) == (503, ["not connected to the supervisor"])
    assert (await stage.control("GET", "/health")).status == 200


async def test_metrics(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering()))
    await stage.ask()
    await stage.ask(kit.chat("none"))
    await stage.control("GET", "/v1/models/none")
    call = await stage.control("GET", "/metrics")
    assert call.answer_headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = call.body_text.decode().splitlines()
    for line in (
        'xi_requests_total{route="/v1/chat/completions",model="m",status="200"} 1',
        'xi_requests_total{route="/v1/chat/completions",model="",status="404"} 1',
        'xi_requests_total{route="/v1/models/{uid}",model="",status="404"} 1',
        'xi_tokens_total{model="m"} 2',
        'xi_requests_open{model="m"} 0',
        'xi_requests_waiting{model="m"} 0',
        'xi_replicas_ready{model="m"} 1',
        "xi_supervisor_connected 1",
        'xi_time_to_first_token_seconds_count{model="m"} 1',
        'xi_request_duration_seconds_bucket{route="/v1/chat/completions",model="m",le="+Inf"} 1',
    ):
        assert line in lines


async def test_tokens_of_open_streams_count_too(stage: Any, replica: Any, kit: Any) -> None:
    from xi_core.wire.frames import Data, End, Open

    one = replica()
    await stage.serve("m", one)
    call = stage.start(kit.chat(stream=True))
    await kit.until(lambda: one.submitted)
    i = one.submitted[0].id
    one.send(Open(i, 200, kit.SSE), Data(i, b"data: 1\n\n", 7))
    await kit.until(lambda: call.parts)
    assert b'xi_tokens_total{model="m"} 7' in (await stage.control("GET", "/metrics")).body_text
    one.send(End(i))
    await call.task
    assert b'xi_tokens_total{model="m"} 7' in (await stage.control("GET", "/metrics")).body_text


async def test_fastapis_own_errors_are_in_the_envelope(stage: Any) -> None:
    missing = await stage.control("GET", "/v1/nothing")
    assert (missing.status, missing.error["code"], missing.error["type"]) == (404, "not_found", "invalid_request_error")
    method = await stage.control("PUT", "/v1/models")
    assert (method.status, method.error["code"]) == (405, "method_not_allowed")
    assert (await stage.control("GET", "/v1/models/")).status == 404


async def test_unexpected_failure_is_logged_once_and_answered_with_its_id(stage: Any, monkeypatch: Any, caplog: Any) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(stage.gateway, "unready", broken)
    call = await stage.control("GET", "/ready")
    assert (call.status, call.error["code"]) == (500, "internal_error")
    assert call.answer_headers["x-request-id"] in call.error["message"]
    assert "inside" not in call.body_text.decode()
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == 1
    assert logged[0].exc_info is not None


async def test_control_body_over_the_limit(make_stage: Any) -> None:
    stage = await make_stage(max_body=1024)
    assert (await stage.control("POST", "/v1/models", {"model_name": "x" * 2000})).status == 413


async def test_documents(stage: Any) -> None:
    page = await stage.control("GET", "/docs")
    assert page.status == 200
    assert b"/openapi.json" in page.body_text
    document = (await stage.control("GET", "/openapi.json")).json
    assert {"/v1/chat/completions", "/v1/rerank", "/v1/models", "/v1/models/{uid}/replicas", "/v1/workers", "/metrics"} <= set(
        document["paths"]
    )
    undocumented = [
        f"{method} {path}" for path, methods in document["paths"].items() for method, one in methods.items() if not one.get("summary")
    ]
    assert undocumented == []
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
    assert {"200", "400", "404", "429", "503", "504"} <= set(chat["responses"])
    schemas = document["components"]["schemas"]
    assert "temperature" in schemas["ChatRequest"]["properties"]
    assert "model_size_in_billions" in schemas["LaunchSpec"]["properties"]
    assert unresolved(document, schemas) == set()
    assert (await stage.control("GET", "/openapi.json")).json == document


def unresolved(part: Any, schemas: dict[str, Any]) -> set[str]:
    """References that lead nowhere."""
    if isinstance(part, list):
        return set().union(*(unresolved(item, schemas) for item in part), set())
    if not isinstance(part, dict):
        return set()
    reference = part.get("$ref", "")
    missing = {reference} if isinstance(reference, str) and reference and reference.rpartition("/")[2] not in schemas else set()
    return missing.union(*(unresolved(item, schemas) for item in part.values()))


async def test_a_worker_that_the_supervisor_has_lost_is_not_taken_for_the_supervisor(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(command: Any, timeout: float | None = 30.0) -> Any:
        raise ChannelClosed("worker w2 has been silent for 1.5 s")

    monkeypatch.setattr(stage.gateway.supervisor._link, "call", lost)
    call = await stage.control("GET", "/v1/workers")
    assert (call.status, call.error["code"], call.error["message"]) == (503, "unavailable", "worker w2 has been silent for 1.5 s")
