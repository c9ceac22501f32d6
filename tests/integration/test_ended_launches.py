"""Launches that are terminated at each moment of their life."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path

import pytest
from supervisor_stage import Stage, alive, life_of, tagged

from xi_core.cluster import messages as m
from xi_core.cluster.store import Store
from xi_core.cluster.supervisor import Supervisor
from xi_core.errors import LaunchCancelled, XiError
from xi_core.testing.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


async def test_a_stubborn_replica_is_killed_after_the_grace(stage: Stage) -> None:
    await stage.launch(options={"mode": "stubborn"})
    pid = (await stage.until("READY")).replicas[0].pid
    began = time.monotonic()
    await stage.link.call(m.Terminate("toy"))
    assert 0.9 < time.monotonic() - began < 4
    assert pid is not None
    assert not alive(pid)


async def test_cancel_while_it_loads(stage: Stage) -> None:
    await stage.launch(options={"mode": "slow"})
    pid = (await stage.until("LOADING")).replicas[0].pid
    assert pid is not None
    life = life_of(pid)
    await stage.link.call(m.Terminate("toy"))
    found = await stage.status()
    assert (found.state, found.error) == ("CANCELLED", "terminated before it was ready")
    assert not tagged(life)


async def test_terminate_while_it_is_resolved(workerless: Stage) -> None:
    launching = asyncio.create_task(workerless.launch())
    await until(lambda: "toy" in workerless.supervisor._launching._resolving)
    await workerless.link.call(m.Terminate("toy"))
    with pytest.raises(LaunchCancelled):
        await launching


async def test_terminate_while_another_spec_is_resolved(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends what runs too, not only what would have been refused."""
    await stage.launch()
    pid = (await stage.until("READY")).replicas[0].pid
    monkeypatch.setattr(stage.supervisor._executor.resolver, "resolve", lambda spec: asyncio.Event().wait())
    doomed = asyncio.create_task(stage.launch(replica=2))
    await until(lambda: "toy" in stage.supervisor._launching._resolving)
    await stage.link.call(m.Terminate("toy"))
    with pytest.raises(LaunchCancelled):
        await doomed
    assert (await stage.link.call(m.ListModels())).models == []
    assert pid is not None
    assert not alive(pid)


async def test_terminate_while_it_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is slow: the launch is accepted, and whoever asked for it waits on."""
    made = Stage(tmp_path)
    store = Store(tmp_path / "home")
    monkeypatch.setattr(store, "keep_launches", lambda *what: time.sleep(0.5))
    made.supervisor = Supervisor(made.hub, made.settings, made.endpoint, 0.0, store=store)
    try:
        await made.work()
        made.client()
        launching = asyncio.create_task(made.launch())
        await until(lambda: made.supervisor._lifecycle.find("toy") is not None)
        assert not launching.done()
        await made.link.call(m.Terminate("toy"))
        with contextlib.suppress(XiError):
            await launching
        assert [found.state for found in (await made.link.call(m.ListModels())).models] == ["CANCELLED"]
        assert not tagged(f"toy-0@{made.supervisor._lifecycle._state._epoch}"), "nothing of this supervisor's runs on"
    finally:
        await made.stack.aclose()
        await made.supervisor.close()
        store.close()


async def test_terminate_does_not_wait_for_the_next_launch_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is slow: the old replica is gone and the next one runs before it is written down that the old one isn't wanted."""
    made = Stage(tmp_path)
    store = Store(tmp_path / "home")
    made.supervisor = Supervisor(made.hub, made.settings, made.endpoint, 0.0, store=store)
    try:
        await made.work()
        made.client()
        await made.launch()
        first = (await made.until("READY")).replicas[0].pid
        monkeypatch.setattr(store, "keep_launches", lambda *what: time.sleep(3.0))
        terminating = asyncio.create_task(made.link.call(m.Terminate("toy")))
        await until(lambda: not made.supervisor._lifecycle.wanted())
        await asyncio.gather(made.launch(), terminating)
        assert first is not None
        assert not alive(first)
        assert (await made.until("READY")).replicas[0].pid != first
    finally:
        await made.stack.aclose()
        await made.supervisor.close()
        store.close()
