"""LoRA modules in the gateway: requests by their names, and their cards in `/v1/models`."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from xi_core.api.control import LaunchSpec


async def tuned(
    stage: Any, kit: Any, *replicas: Any, uid: str = "m", adapters: tuple[str, ...] = ("law", "sql"), state: str = "READY"
) -> None:
    """A launch with LoRA modules."""
    supervisor = stage.supervisor
    supervisor.serve(uid, *replicas, state=state)
    supervisor.publish(replace(supervisor.routes[uid], adapters=list(adapters)))
    modules = {name: f"/{name}" for name in reversed(adapters)}
    supervisor.statuses[uid].spec = LaunchSpec(model_name="xi-tiny", model_uid=uid, lora_modules=modules)
    await kit.until(lambda: stage.gateway.table.version == supervisor.version)


async def test_requests_by_a_modules_name_go_to_its_launch(stage: Any, replica: Any, kit: Any) -> None:
    one = replica(script=kit.answering())
    await tuned(stage, kit, one)
    assert (await stage.ask(kit.chat("sql"))).status == 200
    assert b'"model": "sql"' in one.submitted[0].body
    assert kit.FirstRouter.made[0].request.uid == "m"
    assert stage.gateway.metrics.requests.values == {("/v1/chat/completions", "m", "200"): 1}


async def test_an_unknown_name_is_told_those_that_are_there(stage: Any, replica: Any, kit: Any) -> None:
    await tuned(stage, kit, replica())
    call = await stage.ask(kit.chat("sq"))
    assert (call.status, call.error["code"]) == (404, "model_not_found")
    assert call.error["message"] == "model 'sq' does not exist; ready: 'law', 'm', 'sql'"


async def test_names_go_with_their_launch_and_a_uid_goes_before_a_module(stage: Any, replica: Any, kit: Any) -> None:
    other = replica("r2", script=kit.answering())
    await tuned(stage, kit, replica("r1"))
    await stage.serve("sql", other)
    assert (await stage.ask(kit.chat("sql"))).status == 200
    assert len(other.submitted) == 1
    stage.supervisor.publish(removed=("m",))
    await kit.until(lambda: "m" not in stage.gateway.table.models)
    assert (await stage.ask(kit.chat("law"))).status == 404


async def test_their_cards(stage: Any, replica: Any, kit: Any) -> None:
    await tuned(stage, kit, replica())
    await tuned(stage, kit, uid="gone", adapters=("old",), state="FAILED")
    cards = (await stage.control("GET", "/v1/models")).json["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("m", "m", None), ("law", "m", "m"), ("sql", "m", "m"), ("gone", "gone", None),
    ]  # fmt: skip
    assert cards[2]["endpoints"] == cards[0]["endpoints"] != []
    one = (await stage.control("GET", "/v1/models/sql")).json
    assert (one["id"], one["parent"], one["model_uid"], one["state"]) == ("sql", "m", "m", "READY")
    assert one["model_ability"] == ["chat", "generate"]
    assert one["spec"]["lora_modules"] == {"sql": "/sql", "law": "/law"}
    whole = (await stage.control("GET", "/v1/models/m")).json
    assert (whole["id"], whole["parent"]) == ("m", None)


async def test_a_module_can_not_be_ended_alone(stage: Any, replica: Any, kit: Any) -> None:
    await tuned(stage, kit, replica())
    assert (await stage.control("DELETE", "/v1/models/sql")).status == 404
    assert (await stage.control("GET", "/v1/models/m")).status == 200


async def test_while_the_supervisor_is_away_cards_come_from_the_table(stage: Any, replica: Any, kit: Any) -> None:
    await tuned(stage, kit, replica())
    await stage.supervisor.close()
    await kit.until(lambda: not stage.gateway.supervisor.subscribed.is_set())
    cards = (await stage.control("GET", "/v1/models")).json["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [("m", None), ("law", "m"), ("sql", "m")]
