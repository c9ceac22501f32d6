"""The gateway's link to the supervisor: what is asked for again when it is lost before the answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from xi_core.cluster.messages import ListModels, Terminate
from xi_core.errors import ChannelClosed, Unavailable


def lose_links(supervisor: Any) -> None:
    links = list(supervisor.links)
    supervisor.links.clear()
    supervisor.closing = [asyncio.ensure_future(link.close()) for link in links]


@pytest.fixture
def losing(stage: Any) -> list[str]:
    """The commands that the supervisor carries out, and then loses the link; each name is taken off once that has happened."""
    supervisor, named = stage.supervisor, []
    accept = supervisor._accept

    def accepting(link: Any) -> Any:
        return {command: answering(command, answer) for command, answer in accept(link).items()}

    def answering(kind: type, answer: Any) -> Any:
        async def answered(command: Any) -> Any:
            found = await answer(command)
            if kind.__name__ in named:
                named.remove(kind.__name__)
                lose_links(supervisor)
                await asyncio.sleep(0.05)
            return found

        return answered

    supervisor.server._accept = accepting
    lose_links(supervisor)
    return named


async def subscribed_anew(stage: Any) -> None:
    before = stage.supervisor.subscriptions
    while stage.supervisor.subscriptions == before:
        await asyncio.sleep(0.01)
    await stage.gateway.supervisor.subscribed.wait()


async def test_an_end_is_asked_for_once(stage: Any, replica: Any, losing: list[str]) -> None:
    """Somebody may have launched another of its name since, and what isn't found may not have been heard of yet."""
    await subscribed_anew(stage)
    stage.supervisor.serve("m", replica())
    await asyncio.sleep(0.05)
    losing.append("Terminate")
    call = await stage.control("DELETE", "/v1/models/m")
    assert (call.status, call.error["code"]) == (503, "unavailable")
    assert "may be done already" in call.error["message"]
    assert [type(asked) for asked in stage.supervisor.asked].count(Terminate) == 1
    call = await stage.control("DELETE", "/v1/models/m")
    assert (call.status, call.error["code"]) == (404, "model_not_found"), "it waits until the supervisor is back"


async def test_a_launch_is_asked_for_again_and_reads_are_not(stage: Any, losing: list[str]) -> None:
    await subscribed_anew(stage)
    losing.append("Launch")
    call = await stage.control("POST", "/v1/models", {"model_name": "xi-tiny", "model_uid": "m"}, b"wait_ready=false")
    assert call.status in (200, 202), call.json
    assert [spec.model_uid for spec in stage.supervisor.launched] == ["m", "m"]
    losing += ["Launch", "Launch"]
    call = await stage.control("POST", "/v1/models", {"model_name": "xi-tiny", "model_uid": "n"}, b"wait_ready=false")
    assert call.status == 503, "it is not asked for for ever"
    assert call.error["message"].startswith("the supervisor is away; ")
    await subscribed_anew(stage)
    losing.append("ListModels")
    with pytest.raises(Unavailable, match="the supervisor is away"):
        await stage.gateway.supervisor.call(ListModels())


async def test_a_launch_asked_for_as_the_supervisor_dies_is_answered_by_the_next(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The send finds the end of the connection before the link hears of it."""
    link = stage.gateway.supervisor._link

    def broken(message: bytes) -> None:
        raise ChannelClosed("ipc://supervisor.sock: Broken pipe")

    monkeypatch.setattr(link, "_send_bytes", broken)
    call = await stage.control("POST", "/v1/models", {"model_name": "xi-tiny", "model_uid": "m"}, b"wait_ready=false")
    assert call.status in (200, 202), call.json
    assert [spec.model_uid for spec in stage.supervisor.launched] == ["m"]
    assert link.closed.is_set()


async def test_a_worker_that_the_supervisor_has_lost_is_no_reason_to_ask_again(stage: Any) -> None:
    async def lost(spec: Any) -> None:
        raise ChannelClosed("worker w1 has hung up")

    stage.supervisor.on_launch = lost
    call = await stage.control("POST", "/v1/models", {"model_name": "xi-tiny", "model_uid": "m"}, b"wait_ready=false")
    assert (call.status, call.error["message"]) == (503, "worker w1 has hung up")
    assert len(stage.supervisor.launched) == 1
