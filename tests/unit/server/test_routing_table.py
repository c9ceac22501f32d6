"""The routing table: versions, gaps, a supervisor that comes back with another epoch."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.cluster.messages import ModelRoute, TableUpdate
from xi_server import table as table_module


async def test_a_gap_in_the_versions_asks_for_all_of_it(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("a", replica("r1"))
    supervisor = stage.supervisor
    supervisor.routes["b"] = ModelRoute(uid="b", state="READY")
    supervisor.version += 5
    supervisor.tell(TableUpdate(epoch=supervisor.epoch, version=supervisor.version, full=False, models=[]))
    await kit.until(lambda: "b" in stage.gateway.table.models)
    assert supervisor.subscriptions == 2
    assert set(stage.gateway.table.models) == {"a", "b"}


async def test_heartbeats_and_old_versions_change_nothing(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("a", replica("r1"))
    supervisor = stage.supervisor
    link = stage.gateway.table.models["a"].links["r1"]
    for version in (supervisor.version, supervisor.version - 1):
        supervisor.tell(TableUpdate(epoch=supervisor.epoch, version=version, full=False, models=[ModelRoute(uid="a", state="FAILED")]))
    await stage.serve("b")
    assert stage.gateway.table.models["a"].links["r1"] is link
    assert stage.gateway.table.models["a"].route.state == "READY"
    assert supervisor.subscriptions == 1


async def test_removed_models_go(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1")
    await stage.serve("a", one)
    await kit.until(lambda: one.pings)
    stage.supervisor.publish(removed=("a",))
    await kit.until(lambda: not stage.gateway.table.models)
    await kit.until(lambda: not one.listener.channels)


async def test_a_snapshot_of_the_same_epoch_is_the_whole_truth(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("a", replica("r1"))
    stage.supervisor.routes.clear()
    stage.supervisor.version += 3
    stage.supervisor.tell(TableUpdate(epoch=stage.supervisor.epoch, version=stage.supervisor.version, full=False, models=[]))
    await kit.until(lambda: not stage.gateway.table.models)


async def restarted(stage: Any, kit: Any) -> Any:
    """The supervisor dies and another, which knows nothing, takes its place."""
    old = stage.supervisor
    await old.close()
    await kit.until(lambda: not stage.gateway.supervisor.subscribed.is_set())
    stage.supervisor = kit.FakeSupervisor(old.endpoint)
    await kit.until(stage.gateway.supervisor.subscribed.is_set)
    return stage.supervisor


async def test_a_new_supervisor_that_knows_nothing_yet_fails_no_request(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1", script=kit.answering())
    await stage.serve("a", one)
    link = stage.gateway.table.models["a"].links["r1"]
    supervisor = await restarted(stage, kit)
    assert (await stage.ask(kit.chat("a"))).status == 200
    supervisor.serve("a", state="PENDING")
    await kit.until(lambda: stage.gateway.table.version == supervisor.version)
    assert (await stage.ask(kit.chat("a"))).status == 200
    supervisor.serve("a", one)
    await kit.until(lambda: stage.gateway.table.version == supervisor.version)
    assert stage.gateway.table.models["a"].links["r1"] is link
    assert (await stage.ask(kit.chat("a"))).status == 200


async def test_what_is_removed_by_name_goes_at_once(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("a", replica("r1", script=kit.answering()))
    supervisor = await restarted(stage, kit)
    supervisor.publish(removed=("a",))
    await kit.until(lambda: "a" not in stage.gateway.table.models)


async def test_what_is_not_adopted_in_time_goes(stage: Any, replica: Any, kit: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(table_module, "ADOPTION", 0.4)
    await stage.serve("a", replica("r1", script=kit.answering()))
    await restarted(stage, kit)
    assert (await stage.ask(kit.chat("a"))).status == 200
    await kit.until(lambda: "a" not in stage.gateway.table.models)
    assert (await stage.ask(kit.chat("a"))).status == 404


async def test_what_died_meanwhile_goes(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1", script=kit.answering())
    await stage.serve("a", one)
    await restarted(stage, kit)
    await one.close()
    await kit.until(lambda: "a" not in stage.gateway.table.models)


@pytest.mark.parametrize("dies", [True, False])
async def test_what_the_new_supervisor_lists_stays_as_it_says(stage: Any, replica: Any, kit: Any, monkeypatch: Any, dies: bool) -> None:
    """It can't reach the replica's worker, which this gateway can, until the replica dies or the time to adopt it is over."""
    monkeypatch.setattr(table_module, "ADOPTION", 10.0 if dies else 0.4)
    one = replica("r1", script=kit.answering())
    await stage.serve("a", one)
    supervisor = await restarted(stage, kit)
    supervisor.serve("a", state="PENDING", detail="waiting: no worker")
    await kit.until(lambda: stage.gateway.table.version == supervisor.version)
    assert (await stage.ask(kit.chat("a"))).status == 200
    if dies:
        await one.close()
    await kit.until(lambda: "a" not in stage.gateway.table.models or not stage.gateway.table.models["a"].links)
    call = await stage.ask(kit.chat("a"))
    assert (call.status, call.error["message"]) == (503, "model 'a' is PENDING: waiting: no worker")


async def test_a_part_that_is_not_reached_while_the_rest_is_away_is_told_as_such(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1")
    await stage.serve("a", one, state="PENDING", detail="worker w1 is away")
    await one.close()
    await kit.until(lambda: not stage.gateway.table.models["a"].usable())
    call = await stage.ask(kit.chat("a"))
    why = "none of its replicas answers: worker w1 is away"
    assert (call.status, call.error["message"]) == (503, f"model 'a' can't be served now: {why}; try again in a moment")


async def test_a_new_life_of_a_replica_gets_a_new_link(stage: Any, replica: Any, kit: Any) -> None:
    one, again = replica("r1"), replica("r1", script=kit.answering())
    await stage.serve("a", one)
    await stage.serve("a", again)
    assert (await stage.ask(kit.chat("a"))).status == 200
    assert one.submitted == []


async def test_a_transport_that_no_plugin_offers_is_not_imported(stage: Any, replica: Any, kit: Any, caplog: Any) -> None:
    one = replica("r1")
    route = one.route
    route.transport = "os:system"
    stage.supervisor.publish(ModelRoute(uid="a", state="READY", replicas=[route]))
    await kit.until(lambda: "a" in stage.gateway.table.models)
    assert (await stage.ask(kit.chat("a"))).status == 503
    assert "os:system" in caplog.text
