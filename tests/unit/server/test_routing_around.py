"""Routing around replicas that are late, lost, stopping or failing, and what routers are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from xi_core.wire.frames import Data, End, Open
from xi_plugins.routers.prefix_affinity import PrefixAffinity
from xi_server import replica_link


def link_of(stage: Any, name: str) -> Any:
    return stage.gateway.table.models["m"].links[name]


@pytest.fixture
def fast_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xi_server.breaker.PAUSE_FIRST", 0.01)


async def test_a_missed_ping_takes_a_replica_out_and_an_answer_brings_it_back(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1", script=kit.answering()), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    link = link_of(stage, "r1")
    await kit.until(lambda: one.pings >= 2)
    one.silent = True
    await kit.until(lambda: not link.usable)
    assert link.alive, "it leaves the routing before it counts as lost"
    assert (await stage.ask()).status == 200
    assert (one.submitted, len(two.submitted)) == ([], 1)
    one.silent = False
    await kit.until(lambda: link.usable)
    assert (await stage.ask()).status == 200
    assert len(one.submitted) == 1


async def test_a_late_replica_serves_where_there_is_no_other(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1", script=kit.answering())
    await stage.serve("m", one)
    await kit.until(lambda: one.pings >= 2)
    one.silent = True
    await kit.until(lambda: link_of(stage, "r1").late)
    assert (await stage.ask()).status == 200


async def test_a_silent_replica_keeps_a_request_that_no_other_can_take(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1")
    await stage.serve("m", one)
    link = link_of(stage, "r1")
    call = stage.start()
    await kit.until(lambda: one.submitted)
    one.silent = True
    await kit.until(lambda: not link.alive)
    late = stage.start()
    await asyncio.sleep(0.1)
    assert len(one.submitted) == 1, "it takes no new one, which waits"
    one.silent = False
    await kit.until(lambda: len(one.submitted) == 2)
    for submit in one.submitted:
        one.answer(submit)
    await call.task
    await late.task
    assert (call.status, late.status) == (200, 200)


async def test_a_replica_that_stays_silent_is_lost_and_what_waited_for_it_is_told(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1")
    await stage.serve("m", one)
    link = link_of(stage, "r1")
    await kit.until(lambda: one.pings >= 2)
    one.silent = True
    await kit.until(lambda: link.stalled)
    late = stage.start()
    link._unanswered = replica_link.LOST_PINGS
    await late.task
    assert (late.status, link.stalled, one.submitted) == (503, False, [])
    await kit.until(lambda: link._channel is not None)
    assert (await stage.ask()).status == 503, "one that was lost is not waited for"


async def test_a_gateway_that_stood_still_blames_no_replica(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1", script=kit.answering())
    await stage.serve("m", one)
    link = link_of(stage, "r1")
    await kit.until(lambda: one.pings)
    one.silent = True
    for _ in range(2 * replica_link.MISSED_PINGS):
        link.tick(on_time=False)
    assert (link.late, link.alive) == (False, True)


async def test_one_replica_that_died_and_one_that_fell_silent_are_both_survived(stage: Any, replica: Any, kit: Any) -> None:
    one, two, three = replica("r1"), replica("r2"), replica("r3", script=kit.answering())
    await stage.serve("m", one, two, three)
    call = stage.start()
    await kit.until(lambda: one.submitted)
    await one.close()
    await kit.until(lambda: two.submitted)
    two.silent = True
    await call.task
    assert (call.status, call.json) == (200, {"ok": True})
    assert b'xi_retries_total{model="m"} 2' in (await stage.control("GET", "/metrics")).body_text


@pytest.mark.parametrize("stopping", [True, False])
async def test_a_request_whose_replica_dies_or_stops_waits_for_one_that_stands_still(
    stage: Any, replica: Any, kit: Any, stopping: bool
) -> None:
    """As one that arrives at that moment would."""
    one, two = replica("r1"), replica("r2")
    await stage.serve("m", one, two)
    await kit.until(lambda: two.pings >= 2)
    two.silent = True
    await kit.until(lambda: link_of(stage, "r2").stalled)
    call = stage.start()
    await kit.until(lambda: one.submitted)
    if stopping:
        one.answer(one.submitted[0], 503, b'{"error":"drains"}')
    else:
        await one.close()
    two.silent = False
    await kit.until(lambda: two.submitted)
    two.answer(two.submitted[0])
    await call.task
    assert (call.status, call.json) == (200, {"ok": True})


async def test_a_request_that_waited_in_vain_for_one_that_stands_still_tells_of_the_first_loss(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1"), replica("r2")
    await stage.serve("m", one, two)
    link = link_of(stage, "r2")
    await kit.until(lambda: two.pings >= 2)
    two.silent = True
    await kit.until(lambda: link.stalled)
    call = stage.start()
    await kit.until(lambda: one.submitted)
    await one.close()
    await kit.until(lambda: link_of(stage, "r1").open_streams == 0)
    assert not call.task.done()
    link._unanswered = replica_link.LOST_PINGS
    await call.task
    assert (call.status, call.error["code"], two.submitted) == (502, "replica_lost", [])


async def test_a_stalled_replica_that_the_request_has_left_is_not_waited_for(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1"), replica("r2")
    await stage.serve("m", one, two)
    link = link_of(stage, "r1")
    call = stage.start()
    await kit.until(lambda: one.submitted)
    one.silent = True
    await kit.until(lambda: two.submitted)
    assert link.stalled
    await two.close()
    await call.task
    assert (call.status, call.error["code"], link.stalled) == (502, "replica_lost", True)


async def test_a_request_under_which_three_replicas_fell_silent_is_not_tried_again(stage: Any, replica: Any, kit: Any) -> None:
    replicas = [replica(f"r{n}") for n in range(4)]
    await stage.serve("m", *replicas)
    call = stage.start()
    for one in replicas[:3]:
        await kit.until(lambda one=one: one.submitted)
        for _ in range(replica_link.MISSED_PINGS):
            one.silent = True
            link_of(stage, one.replica_id)._unanswered += 1
    await call.task
    assert (call.status, call.error["code"]) == (502, "replica_lost")
    assert replicas[3].submitted == []


async def test_replicas_that_are_just_stopping_are_passed_by(stage: Any, replica: Any, kit: Any) -> None:
    stopping = [replica(f"r{n}", script=kit.answering(503, b'{"error":"drains"}')) for n in range(3)]
    await stage.serve("m", *stopping, replica("r3", script=kit.answering()))
    assert (await stage.ask()).json == {"ok": True}


async def test_a_replica_that_fails_request_after_request_gets_none_for_a_while(
    stage: Any, replica: Any, kit: Any, fast_breaker: None
) -> None:
    one, two = replica("r1", script=kit.answering(500, b"{}")), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    assert [(await stage.ask()).status for _ in range(5)] == [500] * 5
    assert (await stage.ask()).status == 200
    assert len(one.submitted) == 5
    breaker = link_of(stage, "r1").breaker
    assert b'xi_replica_breaker{model="m",replica="r1"} 2' in (await stage.control("GET", "/metrics")).body_text
    await kit.until(lambda: breaker.state == "half_open")
    one.script = None
    trying = stage.start()
    await kit.until(lambda: len(one.submitted) == 6)
    assert (await stage.ask()).status == 200, "one request tries it out, the others go elsewhere"
    assert len(one.submitted) == 6
    one.answer(one.submitted[-1])
    await trying.task
    assert breaker.state == "closed"
    one.script = kit.answering()
    assert (await stage.ask()).status == 200
    assert len(one.submitted) == 7


async def on_trial(stage: Any, replica: Any, kit: Any) -> tuple[Any, Any, Any]:
    """A replica whose breaker lets one request try it, its link, and that request, which it has and hasn't answered."""
    one, two = replica("r1", script=kit.answering(500, b"{}")), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    for _ in range(5):
        await stage.ask()
    link = link_of(stage, "r1")
    await kit.until(lambda: link.usable)
    one.script = None
    trying = stage.start()
    await kit.until(lambda: len(one.submitted) == 6)
    assert not link.usable
    return one, link, trying


async def test_a_client_that_leaves_a_trial_makes_room_for_the_next(stage: Any, replica: Any, kit: Any, fast_breaker: None) -> None:
    _, link, trying = await on_trial(stage, replica, kit)
    trying.leave()
    await trying.task
    assert link.usable


async def test_an_answer_that_crosses_its_leaving_client_makes_room_for_the_next_trial(
    stage: Any, replica: Any, kit: Any, fast_breaker: None
) -> None:
    """The client is seen to have left, and before the request's coroutine goes on the answer begins too."""
    one, link, trying = await on_trial(stage, replica, kit)
    trying.leave()
    one.answer(one.submitted[-1])
    await trying.task
    assert trying.parts == []
    assert link.usable


async def test_breakers_never_leave_a_model_without_a_replica(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1", script=kit.answering(500, b"{}"))
    await stage.serve("m", one)
    for _ in range(8):
        assert (await stage.ask()).status == 500
    one.script = kit.answering()
    assert (await stage.ask()).status == 200
    assert link_of(stage, "r1").breaker.state == "closed"


async def test_refusals_of_requests_open_no_breaker(stage: Any, replica: Any, kit: Any) -> None:
    one = replica("r1", script=kit.answering(400, b"{}"))
    await stage.serve("m", one)
    for _ in range(20):
        await stage.ask()
    assert link_of(stage, "r1").breaker.state == "closed"


async def test_a_loss_counts_once_however_many_requests_it_takes(stage: Any, replica: Any, kit: Any) -> None:
    one, two = replica("r1"), replica("r2", script=kit.answering())
    await stage.serve("m", one, two)
    calls = [stage.start() for _ in range(20)]
    await kit.until(lambda: len(one.submitted) == 20)
    await one.close()
    await asyncio.gather(*(call.task for call in calls))
    assert {call.status for call in calls} == {200}
    assert link_of(stage, "r1").breaker.state == "closed"


async def test_a_replica_with_an_open_breaker_serves_again_once_it_is_back_where_there_is_no_other(
    stage: Any, replica: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xi_server.breaker.PAUSE_FIRST", 30.0)
    one = replica("r1", script=kit.answering(500, b"{}"))
    await stage.serve("m", one)
    for _ in range(5):
        await stage.ask()
    link, model = link_of(stage, "r1"), stage.gateway.table.models["m"]
    link._lose("x")
    assert model.usable() == []
    await kit.until(lambda: link.alive)
    assert link.breaker.state == "open"
    assert (await stage.ask()).status == 500


@pytest.mark.parametrize("load", [{"asleep": 1}, {"draining": True}, {"healthy": False}])
async def test_a_late_replica_that_says_that_it_takes_nothing_gets_nothing(
    stage: Any, replica: Any, kit: Any, load: dict[str, Any]
) -> None:
    one = replica("r1", script=kit.answering())
    await stage.serve("m", one)
    link, model = link_of(stage, "r1"), stage.gateway.table.models["m"]
    await kit.until(lambda: one.pings >= 2)
    one.silent = True
    await kit.until(lambda: link.late)
    assert model.usable(), "there is no other"
    one.say(**load)
    await kit.until(lambda: not link.fit)
    assert (model.usable(), model.asleep) == ([], "asleep" in load)
    assert (await stage.ask()).status == 503
    assert one.submitted == []


# ---- what routers are told ------------------------------------------------------------------------


async def test_prefixes_are_made_for_routers_that_want_them(stage: Any, replica: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit.FirstRouter, "wants_prefix", True)
    await stage.serve("m", replica("r1", script=kit.answering()))
    router = kit.FirstRouter.made[0]
    seen = []
    for last in ("a", "b"):
        await stage.ask(kit.chat(messages=[{"role": "user", "content": "x" * 1000 + last * 300}]))
        seen.append(router.request.prefix)
    assert len(seen[0]) == len(seen[1]) == 5
    assert seen[0][:4] != seen[0][1:]
    assert seen[0][:3] == seen[1][:3]
    assert seen[0][4] != seen[1][4]


async def test_routers_hear_of_replicas_that_are_gone(stage: Any, replica: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    monkeypatch.setattr(kit.FirstRouter, "on_gone", lambda self, name: gone.append(name), raising=False)
    one, two = replica("r1"), replica("r2")
    await stage.serve("m", one, two)
    await stage.serve("m", two)
    assert gone == ["r1"]
    await stage.serve("m", replica("r2"))
    assert gone == ["r1", "r2"], "another life has another cache"


async def test_what_answers_use_of_their_limit_is_learned(stage: Any, replica: Any, kit: Any) -> None:
    def short(replica: Any, submit: Any) -> None:
        replica.send(Open(submit.id, 200, "application/json", 3), Data(submit.id, b"{}", 10), End(submit.id, "stop"))

    one = replica("r1", script=short)
    await stage.serve("m", one)
    model, router = stage.gateway.table.models["m"], kit.FirstRouter.made[0]
    body = kit.chat(max_tokens=4096)
    await stage.ask(body)
    first = router.request.tokens
    assert first >= 4096
    for _ in range(50):
        await stage.ask(body)
    assert router.request.tokens < first / 10
    one.script = kit.answering(400, b"{}")
    before = model.expected.tokens("/v1/chat/completions", 0, 4096)
    await stage.ask(body)
    assert model.expected.tokens("/v1/chat/completions", 0, 4096) == before, "a refusal teaches nothing"


async def test_prefix_affinity_keeps_conversations_together(stage: Any, replica: Any, kit: Any) -> None:
    replicas = [replica(f"r{n}", script=kit.answering()) for n in range(3)]
    await stage.serve("m", *replicas)
    stage.gateway.table.models["m"].router = PrefixAffinity()
    talks = {name: [{"role": "user", "content": name * 600}] for name in "abcdef"}
    for turn in range(4):
        for talk in talks.values():
            assert (await stage.ask(kit.chat(messages=talk))).status == 200
            talk += [{"role": "assistant", "content": f"answer {turn}"}, {"role": "user", "content": f"question {turn}"}]
    for one in replicas:
        served = [next(name for name in talks if name * 600 in submit.body.decode()) for submit in one.submitted]
        assert {name: served.count(name) for name in served} == dict.fromkeys(served, 4), "all turns of a conversation, or none"
        assert len(set(served)) == 2
