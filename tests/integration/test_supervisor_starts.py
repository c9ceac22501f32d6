"""A supervisor or a worker that is started again: what it says and takes over, and what it starts anew."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from supervisor_stage import Stage, alive, until_ended, until_known

from xi_core.cluster import messages as m
from xi_core.cluster.store import Store
from xi_core.plugins import PluginHub, PluginRecord
from xi_core.testing.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


async def test_a_new_supervisor_adopts_the_same_process(stage: Stage) -> None:
    await stage.launch(replica=2)
    before = [r.pid for r in (await stage.until("READY")).replicas]
    await stage.supervisor.close()
    stage.supervise(settle=3.0)
    stage.client()
    await until_known(stage)
    found = await stage.until("READY", seconds=5)
    assert [r.pid for r in found.replicas] == before
    assert await stage.launch(replica=2) == "toy"
    assert [r.pid for r in (await stage.status()).replicas] == before


async def test_what_is_ended_or_scaled_just_after_a_restart_is_what_runs(stage: Stage) -> None:
    """The new supervisor hears of it from the worker, a moment later."""
    await stage.launch(replica=2)
    await stage.launch(model_uid="other")
    before = [r.pid for r in (await stage.until("READY")).replicas]
    (other,) = [r.pid for r in (await stage.until("READY", "other")).replicas]
    await stage.supervisor.close()
    stage.supervise(settle=2.0)
    stage.client()
    await asyncio.gather(stage.link.call(m.Scale("toy", 1)), stage.link.call(m.Terminate("other")))
    assert other is not None
    assert not alive(other)
    await until(lambda: len([pid for pid in before if pid and alive(pid)]) == 1, 5.0)
    end = time.monotonic() + 5.0
    while len((await stage.status()).replicas) > 1:  # the word that a process is gone comes after that
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    (kept,) = (await stage.until("READY")).replicas
    assert kept.pid in before


async def test_what_was_wanted_tells_what_it_waits_for_though_no_worker_comes(stage: Stage) -> None:
    await stage.supervisor.close()
    store = Store(stage.folder / "kept")
    stage.supervise(store=store)
    stage.client()
    await until(lambda: bool(stage.supervisor._executor.workers), 10.0)
    await stage.launch()
    await stage.until("READY")
    await stage.end_worker()
    await stage.supervisor.close()
    stage.supervise(settle=0.2, store=store)
    stage.client()
    end = time.monotonic() + 5.0
    while "no worker is connected" not in (await stage.status()).replicas[0].stage:
        assert time.monotonic() < end, await stage.status()
        await asyncio.sleep(0.02)
    await stage.supervisor.close()
    store.close()


async def test_a_replica_that_died_while_the_supervisor_was_away_is_started_again(stage: Stage) -> None:
    await stage.launch()
    (first,) = [r.pid for r in (await stage.until("READY")).replicas]
    await stage.supervisor.close()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: not stage.worker._running, 5.0)
    stage.supervise(settle=0.5)
    stage.client()
    await until_known(stage)
    found = await stage.until("READY")
    assert found.replicas[0].pid != first


async def test_what_runs_on_an_engine_that_the_supervisor_has_lost_fails_with_its_name_once_it_dies(stage: Stage) -> None:
    await stage.launch()
    (pid,) = [r.pid for r in (await stage.until("READY")).replicas]
    await stage.supervisor.close()
    stage.hub = PluginHub.load()
    stage.supervise(settle=0.2)
    stage.client()
    await until_known(stage)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    found = await until_ended(stage, "FAILED")
    assert "unknown engine 'stub'" in (found.error or "")


async def test_a_worker_that_is_stopped_starts_nothing_again(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Its replicas end one by one; those that end first are not started again while the others drain."""
    await stage.launch("toy", model_uid="quick")
    await stage.launch("toy", model_uid="stubborn", options={"mode": "stubborn"})
    await stage.until("READY", "quick")
    lives = [(await stage.until("READY", uid)).replicas[0].pid for uid in ("quick", "stubborn")]
    with caplog.at_level("INFO"):
        await stage.end_worker()
        await until(lambda: "worker w1 has left" in caplog.text, 5.0)  # the supervisor hears of it a moment later
    assert not any(alive(pid) for pid in lives if pid)
    assert stage.worker._tasks == set()
    for uid in ("quick", "stubborn"):
        found = await stage.status(uid)
        assert (found.state, found.replicas[0].restarts, found.replicas[0].error) == ("PENDING", 0, None)
        assert "no worker is connected" in found.replicas[0].stage
    assert not [record for record in caplog.records if record.levelname != "INFO"], caplog.text
    await stage.work()
    await stage.until("READY", "quick")


async def test_a_plugin_that_is_quarantined_is_told_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Stage(tmp_path)
    made.hub.records.append(PluginRecord("mine", "mine:plugin", "mine", "1.0", state="quarantined", error="ImportError: no mylib"))
    await made.supervise().close()
    assert "xi runs without the plugin mine: ImportError: no mylib; `xi plugins -v` says more" in caplog.text
