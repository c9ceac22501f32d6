"""`xi stop-cluster`: workers and joined gateways are told, each once, and nobody's terminal gets words that are for a launcher."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from joining_town import SOON, Town

from xi_core.cluster import messages as m
from xi_core.cluster.supervisor import VOCABULARY
from xi_core.config import Settings
from xi_core.testing.waiting import until
from xi_core.transport.rpc import Link, dial
from xi_core.transport.schemes import by_scheme
from xi_core.transport.security import ClientSecurity, KeyPair
from xi_server.app import create_app
from xi_server.gateway import Gateway
from xi_server.serve import HttpServer


def gateway(town: Town, told: list[str], name: str = "", keys: KeyPair | None = None) -> Link:
    """A gateway's link: a member's with `keys`, else that of the head's own."""

    async def shutdown(command: m.Shutdown) -> m.Done:
        told.append(name)
        return m.Done()

    endpoint = town.endpoint if keys else town.supervisor.endpoint
    security = ClientSecurity(keys, town.store.keys("supervisor").public) if keys else None
    link = dial(by_scheme(town.hub.transports, endpoint), endpoint, VOCABULARY, {m.Shutdown: shutdown}, lambda: None, security)
    town.links.append(link)
    return link


async def follow(link: Link, name: str) -> None:
    await link.call(m.Subscribe(name, 1))


async def test_joined_gateways_are_told_and_the_heads_own_is_its_launchers(town: Town) -> None:
    told: list[str] = []
    member = town.identity("g1", "gateway")
    await town.enter(member, town.token("gateway"))
    joined, own = gateway(town, told, "g1", member.keys), gateway(town, told, "own")
    await follow(joined, "g1")
    await follow(own, "own")
    await until(lambda: len(town.supervisor._executor.gateways) == 2)
    await own.call(m.StopCluster())
    assert told == ["g1"]
    assert town.supervisor.stop_asked.is_set()


async def test_one_that_does_not_answer_keeps_nobody_from_stopping(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """Such as a gateway of an older xi, which has never heard of it."""
    member = town.identity("g1", "gateway")
    await town.enter(member, town.token("gateway"))
    await follow(town.link(member.keys), "g1")  # which answers nothing
    worker, serving = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    await until(lambda: bool(town.supervisor._executor.gateways))
    await gateway(town, []).call(m.StopCluster())
    await asyncio.wait_for(serving, SOON)
    assert "gateway g1 could not be told to stop: this side doesn't answer Shutdown" in caplog.text


async def test_a_worker_without_a_launcher_prints_no_word_for_one(town: Town, capsys: Any, caplog: pytest.LogCaptureFixture) -> None:
    worker, serving = town.work("w1", await town.enter(town.identity(), town.token()))
    await asyncio.wait_for(worker.registered.wait(), SOON)
    with caplog.at_level(logging.INFO):
        await gateway(town, []).call(m.StopCluster())
        await asyncio.wait_for(serving, SOON)
    assert capsys.readouterr().out == ""
    assert "the cluster is being stopped, and this worker with it" in caplog.text


async def test_a_joined_gateway_ends_in_order_when_the_cluster_is_stopped(town: Town, tmp_path: Path) -> None:
    found = await town.enter(town.identity("g1", "gateway"), town.token("gateway"))
    made = Gateway(Settings(home=str(tmp_path / "g"), grace=1.0), town.hub, found.endpoint, "g1", found.security)
    ready = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = asyncio.create_task(HttpServer(made, create_app(made), listening, announce=lambda url: ready.set()).run())
        await asyncio.wait_for(ready.wait(), SOON)
        await until(lambda: bool(town.supervisor._executor.gateways))
        await made.supervisor.call(m.StopCluster())  # asked through this very gateway, which hears the answer
        await asyncio.wait_for(running, SOON)
