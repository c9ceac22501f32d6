"""Replicas that fail, hang or are killed below a worker, and a keeper that is."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from supervisor_stage import Stage, alive, environ, life_of, tagged, until_ended

from xi_core.cluster import messages as m
from xi_core.testing.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


async def test_a_replica_that_says_why_it_fails_ends_the_launch_at_once(stage: Stage) -> None:
    await stage.launch(options={"mode": "fail"})
    await until_ended(stage, "FAILED")
    found = await stage.status()
    assert found.error == "the weights are not to my taste"
    await stage.link.call(m.Terminate("toy"))
    assert (await stage.link.call(m.ListModels())).models == []


async def test_weights_that_are_missing(stage: Stage) -> None:
    await stage.launch("lost", model_uid="toy")
    found = await until_ended(stage, "FAILED")
    assert "gone" in (found.error or "")


async def test_a_crash_loop_ends_failed_with_the_last_lines_and_can_be_launched_again(stage: Stage) -> None:
    await stage.launch(options={"mode": "crash"})
    found = await until_ended(stage, "FAILED")
    assert "ended 4 times within 60 s" in (found.error or "")
    assert "ended with status 7" in (found.error or "")
    assert "out of luck" in (found.error or "")
    await stage.launch()
    await stage.until("READY")


async def test_one_that_ends_again_and_again_is_stuck_while_the_other_serves(stage: Stage) -> None:
    await stage.launch(replica=2)
    pid = (await stage.until("READY")).replicas[1].pid
    assert pid is not None
    (stage.folder / "toy-1.crash").touch()
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while not (found := await stage.status()).stuck:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.05)
    assert (found.state, found.ready_replicas, found.replicas[1].restarts) == ("PENDING", 1, 4)
    assert "toy-1: ends again and again, tried every 60 s: toy-1 ended with status 7" in found.hindrance()
    assert "out of luck" in found.hindrance()


async def test_a_killed_replica_is_started_again(stage: Stage) -> None:
    await stage.launch(env={"MINE": "1"})
    first = (await stage.until("READY")).replicas[0].pid
    assert first is not None
    assert b"MINE=1" in environ(first)
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 10
    while True:
        found = await stage.status()
        if found.state == "READY" and found.replicas[0].pid != first:
            break
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    assert found.replicas[0].restarts == 1


async def test_the_log_of_the_life_before_is_read_where_the_present_one_is(stage: Stage) -> None:
    await stage.launch()
    first = (await stage.until("READY")).replicas[0].pid
    assert first is not None
    none = await stage.link.call(m.ReadLog(uid="toy", previous=True))
    assert (none.replica_id, none.text, none.next, none.previous) == ("toy-0", "", 0, True)
    with (stage.folder / "home" / "logs" / "toy-0.log").open("a") as log:
        log.write("the first life\n")
    os.kill(first, signal.SIGKILL)
    await until(lambda: (stage.folder / "home" / "logs" / "toy-0.log.1").exists())
    before = await stage.link.call(m.ReadLog(uid="toy", previous=True))
    assert before.text == "hello from toy-0\nthe first life\n"
    assert (await stage.link.call(m.ReadLog(uid="toy", previous=True, start=before.next))).text == ""
    now = await stage.link.call(m.ReadLog(uid="toy"))
    assert "the first life" not in now.text
    assert now.previous is False


async def test_its_children_die_with_a_replica(stage: Stage) -> None:
    await stage.launch(options={"mode": "children"})
    first = (await stage.until("READY")).replicas[0].pid
    assert first is not None
    life = life_of(first)
    family = tagged(life)
    assert len(family) == 3
    os.kill(first, signal.SIGKILL)
    await until(lambda: not any(alive(pid) for pid in family), 5.0)
    await stage.link.call(m.Terminate("toy"))
    assert not tagged(life)


@pytest.mark.parametrize("stage", [{"hang_timeout": 0.5}], indirect=True)
@pytest.mark.parametrize(("mode", "why"), [("hang", "made no progress and was killed: no step"), ("silent", "was silent for 0.5 s")])
async def test_a_hung_replica_is_killed_and_started_again(stage: Stage, mode: str, why: str) -> None:
    await stage.launch(options={"mode": mode})
    first = (await stage.until("READY")).replicas[0].pid
    end = time.monotonic() + 10
    while True:
        replica = (await stage.status()).replicas[0]
        if replica.error:
            break
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    assert why in (replica.error or "")
    assert first is not None
    assert not alive(first)


@pytest.mark.parametrize("stage", [{"launch_timeout": 1.0}], indirect=True)
async def test_a_launch_that_is_not_ready_in_time_fails_with_its_stage(stage: Stage) -> None:
    await stage.launch(options={"mode": "slow"})
    pid = (await stage.until("LOADING")).replicas[0].pid
    assert pid is not None
    life = life_of(pid)
    found = await until_ended(stage, "FAILED", 5)
    assert "not ready within its time" in (found.error or "") or "was not ready" in (found.error or "")
    await until(lambda: not tagged(life), 5.0)


async def test_a_killed_keeper_is_replaced(stage: Stage) -> None:
    async def keeper() -> int:
        cluster = await stage.link.call(m.GetCluster())
        return next(p.pid for p in cluster.processes if p.role == "keeper")

    first = await keeper()
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 5
    while await keeper() == first:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert alive(await keeper())


async def test_a_log_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    made = Stage(tmp_path)
    (tmp_path / "home").touch()
    made.supervise()
    try:
        await made.work()
        made.client()
        await made.launch()
        found = await until_ended(made, "FAILED")
        assert found.error == f"the log file {tmp_path}/home/logs/toy-0.log can't be written: Not a directory; XI_HOME says where logs go"
    finally:
        await made.stack.aclose()
        await made.supervisor.close()
