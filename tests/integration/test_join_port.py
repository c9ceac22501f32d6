"""The join port, at which anybody may knock: what strangers may say there, how much, and how many at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from joining_town import SOON, Town, refusal, registration

from xi_core.cluster import admission, joining
from xi_core.cluster import messages as m
from xi_core.cluster.joining import Join
from xi_core.errors import Forbidden, InvalidRequest, Overloaded
from xi_core.testing.waiting import until
from xi_core.transport import rpc
from xi_core.transport.rpc import Link
from xi_core.transport.security import ClientSecurity, KeyPair


async def test_the_join_port_takes_nothing_but_joining(town: Town) -> None:
    port = joining.join_port(town.endpoint)
    for command in (registration("w1"), m.ListModels(), m.NewJoinToken()):
        error = await refusal(town.link(KeyPair.new(), port), command)
        assert isinstance(error, InvalidRequest)
        assert "doesn't understand the command" in error.message
    token = joining.read(town.token())
    for name in ("../../etc", "", "x" * 200):
        link = town.link(KeyPair.new(), port, joining.VOCABULARY)
        error = await refusal(link, Join(secret=token.secret, name=name, role="worker"))
        assert isinstance(error, InvalidRequest)
        assert (error.param, "is no name" in error.message) == ("name", True)


async def test_a_large_message_at_the_join_port_is_not_taken_and_the_next_machine_joins(town: Town) -> None:
    lost = asyncio.Event()
    security = ClientSecurity(KeyPair.new(), town.store.keys("supervisor").public)
    channel = town.transport.connect(joining.join_port(town.endpoint), lambda message: None, lost.set, security)
    channel.send(bytes(joining.LARGEST + 1))
    await asyncio.wait_for(lost.wait(), SOON)
    link = town.link(KeyPair.new(), joining.join_port(town.endpoint), joining.VOCABULARY)
    error = await refusal(link, Join(secret=bytes(joining.LARGEST - 500), name="w1", role="worker"))
    assert isinstance(error, Forbidden), "what may be a question is answered"
    await town.enter(town.identity(), town.token())
    assert town.store.entries("worker") == ["w1"]


async def test_of_too_many_at_the_join_port_the_oldest_make_room(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MOST_STRANGERS", 3)
    port = joining.join_port(town.endpoint)
    links = [town.link(KeyPair.new(), port, joining.VOCABULARY) for _ in range(3)]
    await until(lambda: len(town.admission._strangers) == 3)
    await town.enter(town.identity(), town.token())
    assert town.store.entries("worker") == ["w1"]
    await until(lambda: any(link.closed.is_set() for link in links))
    (ended,) = (link for link in links if link.closed.is_set())
    assert isinstance(await refusal(ended, Join(secret=b"x", name="w2", role="worker")), Overloaded)
    for link in links:
        await link.close()
    await until(lambda: not town.admission._strangers, what="nobody to be counted who has gone")


async def test_one_who_is_not_let_in_for_the_crowd_tries_on(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    meet, refused = town.admission._desk._accept, []

    def crowded(link: Link) -> rpc.Calls:
        if refused:
            return meet(link)
        refused.append(link)
        raise Overloaded("too many join at once")

    monkeypatch.setattr(town.admission._desk, "_accept", crowded)
    await town.enter(town.identity(), town.token())
    assert len(refused) == 1


async def test_a_stranger_asks_one_question_at_a_time(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, check = threading.Event(), town.store.check_token

    def held(*question: Any) -> None:
        assert slow.wait(SOON)
        check(*question)

    monkeypatch.setattr(town.store, "check_token", held)
    link = town.link(KeyPair.new(), joining.join_port(town.endpoint), joining.VOCABULARY)
    question = Join(secret=b"guess", name="w1", role="worker")
    first = asyncio.create_task(refusal(link, question))
    await asyncio.sleep(0)
    assert isinstance(await refusal(link, question), Overloaded)
    slow.set()
    assert isinstance(await first, Forbidden)
    assert isinstance(await refusal(link, question), Forbidden), "and then the next"
