"""What members of a cluster may say and are told, and what becomes of those that the supervisor has forgotten."""

from __future__ import annotations

import asyncio
import logging

import pytest
from joining_town import SOON, Town, refusal, registration

from xi_core.cluster import joining
from xi_core.cluster import messages as m
from xi_core.cluster.membership import Membership
from xi_core.errors import ChannelRefused, Forbidden, InvalidRequest
from xi_core.testing.waiting import until
from xi_core.transport.security import ClientSecurity, KeyPair


async def test_nobody_registers_under_anothers_name(town: Town) -> None:
    first, second = town.identity(), town.identity("w2")
    for identity in (first, second):
        await town.enter(identity, town.token())
    for command in (registration("w2"), m.Leaving("w2")):
        error = await refusal(town.link(first.keys), command)
        assert isinstance(error, Forbidden)
        assert error.message == "this connection's key belongs to worker w1, not to w2"


async def test_workers_and_gateways_may_only_do_their_own(town: Town) -> None:
    worker, gateway = town.identity(), town.identity("g1", "gateway")
    await town.enter(worker, town.token())
    await town.enter(gateway, town.token("gateway"))
    of_worker, of_gateway = town.link(worker.keys), town.link(gateway.keys)
    for command in (m.Subscribe("g1", 1), m.ListModels(), m.NewJoinToken(), m.Terminate("x"), m.GetCluster()):
        error = await refusal(of_worker, command)
        assert isinstance(error, InvalidRequest)
        assert "doesn't answer" in error.message
    error = await refusal(of_gateway, registration("w1"))
    assert isinstance(error, InvalidRequest)
    answer = await of_gateway.call(m.Subscribe("g1", 1))
    assert answer.keys == town.store.keys("gateways")
    assert (await of_gateway.call(m.GetCluster())).endpoint == town.endpoint
    assert isinstance(await refusal(of_gateway, m.Subscribe("g2", 1)), Forbidden)


async def _gateway(town: Town) -> KeyPair:
    member = town.identity("g1", "gateway")
    await town.enter(member, town.token("gateway"))
    return member.keys


async def test_differences_are_told_at_joining(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    first = town.identity()
    await town.enter(first, town.token())
    with caplog.at_level(logging.WARNING):
        answer = await town.link(first.keys).call(registration("w1"))
    assert any("xi 0" in warning for warning in answer.warnings)
    assert any("lacks the plugin" in warning for warning in answer.warnings)
    assert any("has 9 of the plugin families" in warning for warning in answer.warnings)
    assert "worker w1: " in caplog.text
    (shown,) = (await town.link(await _gateway(town)).call(m.ListWorkers())).workers
    assert (shown.version, shown.plugins) == ("0", {"families": "9"})
    assert shown.differences == answer.warnings


async def test_a_worker_that_is_stopping_takes_nothing_though_it_registers_again(town: Town) -> None:
    member = town.identity()
    await town.enter(member, town.token())
    command = registration("w1")
    command.leaving = True
    await town.link(member.keys).call(command)
    (shown,) = (await town.link(await _gateway(town)).call(m.ListWorkers())).workers
    assert shown.state == "draining"
    assert town.supervisor._lifecycle.members["w1"].leaving


async def test_members_say_more_than_strangers_may(town: Town) -> None:
    identity = town.identity()
    await town.enter(identity, town.token())
    command = registration("w1")
    command.plugins = {"families": "9" * joining.LARGEST}
    assert (await town.link(identity.keys).call(command)).warnings


async def test_a_worker_whose_key_was_forgotten_ends_and_says_so(town: Town) -> None:
    identity = town.identity()
    found = Membership(town.endpoint, ClientSecurity(identity.keys, town.store.keys("supervisor").public))
    _, serving = town.work("w1", found)
    with pytest.raises(ChannelRefused, match="the key of this process is not known there"):
        await asyncio.wait_for(serving, SOON)
    town.workers.clear()


async def test_a_worker_that_was_in_stays_when_the_supervisor_forgets_it(town: Town) -> None:
    worker, serving = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    members, town.store._allowed = town.store._allowed, {}
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    town.supervise(port)
    await until(lambda: not worker.registered.is_set())
    town.store._allowed = members
    await asyncio.wait_for(worker.registered.wait(), SOON)
    assert not serving.done()


async def test_a_worker_says_that_the_supervisor_is_away_and_that_it_is_back(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    worker, _ = town.work("w1", await town.enter(town.identity(), town.token()))
    with caplog.at_level(logging.INFO, logger="xi_core.cluster.linking"):
        await asyncio.wait_for(worker.registered.wait(), SOON)
        assert "connected" not in caplog.text, "at the start its terminal says that it has joined"
        port = int(town.endpoint.rpartition(":")[2])
        await town.supervisor.close()
        await until(lambda: "the supervisor is away; replicas go on serving" in caplog.text)
        town.supervise(port)
        await until(lambda: "connected to the supervisor again" in caplog.text)
        await worker._link.register()  # as when its keeper was started anew
    assert caplog.text.count("connected") == 1
