"""The list of who may join: what is on it, striking off, and new keys for the gateways."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from joining_town import SOON, Town

from xi_core.cluster import messages as m
from xi_core.cluster.store import Entry
from xi_core.cluster.supervisor import VOCABULARY, Supervisor
from xi_core.config import Settings
from xi_core.errors import Forbidden, InvalidRequest, NotFound, WorkerNotFound
from xi_core.plugins import PluginHub
from xi_core.testing.waiting import until
from xi_core.transport.rpc import dial
from xi_core.transport.schemes import by_scheme


async def ask(town: Town, command: Any) -> Any:
    """What the head's own gateway asks, over the local socket."""
    link = dial(by_scheme(town.hub.transports, "ipc://x"), town.supervisor.endpoint, VOCABULARY, {}, lambda: None)
    town.links.append(link)
    return await asyncio.wait_for(link.call(command), SOON)


async def members(town: Town) -> list[tuple[str, str, bool]]:
    return [(one.role, one.name, one.linked) for one in (await ask(town, m.ListMembers())).members]


async def test_who_may_join_is_listed_here_or_not(town: Town) -> None:
    began = time.time()
    worker, _ = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    await town.enter(town.identity("w0"), town.token())
    await town.enter(town.identity("g1", "gateway"), town.token("gateway"))
    assert await members(town) == [("worker", "w0", False), ("worker", "w1", True), ("gateway", "g1", False)]
    assert all(began - 1 <= one.joined <= time.time() + 1 for one in (await ask(town, m.ListMembers())).members)


async def test_a_removed_worker_says_so_ends_and_is_not_let_in_by_its_key_or_its_token(town: Town) -> None:
    identity, token = town.identity(), town.token()
    found = await town.enter(identity, token)
    worker, serving = town.work("w1", found)
    await asyncio.wait_for(worker.registered.wait(), SOON)
    assert (await ask(town, m.RemoveMember(name="w1"))) == m.MemberRemoved(role="worker")
    with pytest.raises(Forbidden, match=r"worker w1 was removed from the cluster .*with a new join token it may come again"):
        await asyncio.wait_for(serving, SOON)
    assert await members(town) == []
    assert (await ask(town, m.ListWorkers())).workers == [], "and it is not one that is away"
    await town.enter(identity, token)  # the old token in a service file; it lets nobody in
    _, again = town.work("w1", found)
    with pytest.raises(Forbidden, match="was removed from the cluster"):
        await asyncio.wait_for(again, SOON)
    town.workers.clear()


async def test_a_worker_that_is_removed_while_it_is_away_is_told_when_it_comes_back(town: Town) -> None:
    worker, serving = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    town.supervise(port)
    await town.admission.strike(Entry("worker", "w1"))
    with pytest.raises(Forbidden, match="was removed from the cluster"):
        await asyncio.wait_for(serving, SOON)
    town.workers.clear()


async def test_a_removed_worker_comes_again_with_a_new_token(town: Town) -> None:
    identity = town.identity()
    await town.enter(identity, town.token())
    await ask(town, m.RemoveMember(name="w1", role="worker"))
    worker, _ = town.work("w1", await town.enter(identity, town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    assert await members(town) == [("worker", "w1", True)]


async def test_whom_to_remove_must_be_clear(town: Town) -> None:
    await town.enter(town.identity("both"), town.token())
    await town.enter(town.identity("both", "gateway", home="g"), town.token("gateway"))
    with pytest.raises(NotFound, match="no member 'w9' is on the list; on it: worker both, gateway both"):
        await ask(town, m.RemoveMember(name="w9"))
    with pytest.raises(InvalidRequest, match="a worker and a gateway named both; say which with --role"):
        await ask(town, m.RemoveMember(name="both"))
    assert (await ask(town, m.RemoveMember(name="both", role="gateway"))).role == "gateway"
    assert await members(town) == [("worker", "both", False)]


async def test_gateways_are_told_of_new_keys_and_keep_those_that_replicas_still_want(town: Town) -> None:
    told: list[m.GatewayKeys] = []

    async def hear(notice: m.GatewayKeys) -> None:
        told.append(notice)

    transport = by_scheme(town.hub.transports, "ipc://x")
    link = dial(transport, town.supervisor.endpoint, VOCABULARY, {m.GatewayKeys: hear}, lambda: None)
    town.links.append(link)
    first = (await link.call(m.Subscribe("g", 1))).keys
    await until(lambda: bool(town.supervisor._executor.gateways))
    assert (await link.call(m.RotateGatewayKeys())) == m.GatewayKeysRotated([])
    await until(lambda: bool(told))
    assert (told[0].keys != first, told[0].older) == (True, [first])
    assert town.supervisor._executor.gateways_key == told[0].keys.public
    await link.call(m.RotateGatewayKeys())
    await until(lambda: len(told) == 2)
    assert told[1].older == [told[0].keys], "nothing wants to see the first any more"
    again = await link.call(m.Subscribe("g", 1))
    assert (again.keys, again.older) == (told[1].keys, told[1].older)
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    town.supervise(port)
    assert (town.admission.gateway_keys, town.admission.older_keys) == (again.keys, again.older), "over restarts"


async def test_a_supervisor_by_itself_has_no_list(tmp_path: Path) -> None:
    alone = Supervisor(PluginHub.load(), Settings(home=str(tmp_path)), f"ipc://{tmp_path}/s.sock", 0.0)
    link = dial(by_scheme(PluginHub.load().transports, "ipc://x"), alone.endpoint, VOCABULARY, {}, lambda: None)
    for command in (m.ListMembers(), m.RemoveMember(name="x"), m.RotateGatewayKeys()):
        with pytest.raises(InvalidRequest, match="takes no other machines"):
            await link.call(command)
    await link.close()
    await alone.close()


async def workers(town: Town) -> dict[str, str]:
    return {one.name: one.state for one in (await ask(town, m.ListWorkers())).workers}


async def test_a_worker_that_has_not_come_back_since_the_head_was_restarted_is_shown_as_away(town: Town) -> None:
    first = town.identity("w1")
    await town.enter(first, town.token())
    await town.enter(town.identity("w2"), town.token())
    await town.supervisor.close()
    town.supervise()
    assert await workers(town) == {"w1": "away", "w2": "away"}
    await ask(town, m.Drain(worker="w2", seconds=60.0))  # nothing is to be placed there when it comes
    await ask(town, m.Drain(worker="w2", seconds=60.0, undo=True))
    with pytest.raises(WorkerNotFound, match="there is no worker 'w3'; workers: w1, w2"):
        await ask(town, m.Drain(worker="w3", seconds=60.0))
    worker, _ = town.work("w1", await town.enter(first))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    assert await workers(town) == {"w1": "ready", "w2": "away"}
    await ask(town, m.RemoveMember(name="w2"))
    assert await workers(town) == {"w1": "ready"}
