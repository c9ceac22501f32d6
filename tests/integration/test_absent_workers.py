"""Workers that may join, and haven't come since the supervisor started: a launch that could be for them says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from joining_town import SOON, Town

from xi_core.api.control import LaunchSpec
from xi_core.cluster import messages as m
from xi_core.cluster.supervisor import VOCABULARY
from xi_core.errors import NoPlacement, WorkerNotFound
from xi_core.transport.rpc import dial
from xi_core.transport.schemes import by_scheme


async def ask(town: Town, command: Any) -> Any:
    link = dial(by_scheme(town.hub.transports, "ipc://x"), town.supervisor.endpoint, VOCABULARY, {}, lambda: None)
    town.links.append(link)
    return await asyncio.wait_for(link.call(command), SOON)


def spec(**fields: Any) -> LaunchSpec:
    return LaunchSpec(model_name="xi-tiny", model_engine="llama.cpp", **fields)


async def test_a_worker_of_before_the_restart_is_away_and_a_stranger_is_unknown(town: Town) -> None:
    await town.enter(town.identity("w2"), town.token())
    found = await town.enter(town.identity("w1"), town.token())
    port = int(town.endpoint.rpartition(":")[2])
    await town.supervisor.close()
    town.supervise(port)
    worker, _ = town.work("w1", found)
    await asyncio.wait_for(worker.registered.wait(), SOON)
    for fields in ({"n_gpu": 1}, {"n_gpu": None, "worker_ip": "w2"}):
        (report,) = (await ask(town, m.Explain(spec(**fields)))).replicas
        assert not report.placed
        assert [(c.worker, "is away" in c.reason) for c in report.candidates if c.worker == "w2"] == [("w2", True)]
        with pytest.raises(NoPlacement, match="w2: is away"):
            await ask(town, m.Launch(spec(**fields)))
    with pytest.raises(WorkerNotFound, match=r"there is no worker 'w3'; workers: w1 \(127\.0\.0\.1\), w2$"):
        await ask(town, m.Launch(spec(worker_ip="w1,w3")))
