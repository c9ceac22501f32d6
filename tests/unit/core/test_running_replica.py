"""A replica on its worker: before it has a process, and after it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from xi_core.api.control import LaunchSpec
from xi_core.cluster import running
from xi_core.cluster.guard import Guard
from xi_core.cluster.messages import StartReplica
from xi_core.cluster.running import RunningReplica
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.source import Progress
from xi_core.testing.harness import plan_for
from xi_core.testing.waiting import until
from xi_core.wire.plan import RankAddress, Rendezvous


async def test_a_stopped_replica_is_gone_only_when_what_fetches_for_it_has_ended(tmp_path: Path) -> None:
    """Else a worker that is told to stop ends before the thread has ended uv, which would go on alone."""
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    start = StartReplica(spec=LaunchSpec(model_name="toy"), model=model, plan=plan_for("x:X", "", "fake"), created=1, deadline=10.0)
    began, ended = threading.Event(), threading.Event()

    def build(start: StartReplica, progress: Progress) -> Path | None:
        began.set()
        try:
            while True:
                progress("environment: working", None)
                time.sleep(0.1)
        finally:
            time.sleep(0.1)
            ended.set()

    guard = Guard()
    try:
        replica = RunningReplica(
            start, worker="w1", home=tmp_path, fetch=lambda ref, progress: tmp_path, build=build, guard=guard, on_change=lambda one: None
        )
        running = asyncio.ensure_future(replica.run())
        assert await asyncio.to_thread(began.wait, 5)
        replica.stop(0.0)
        await asyncio.wait_for(running, 5)
        assert ended.is_set()
        assert replica.error is None
    finally:
        guard.close()


FAILS = """
import os, sys
from xi_core.errors import EngineError, LaunchFailed
from xi_core.wire.report import Failed, encode
error = {error}
os.write(int(sys.argv[sys.argv.index("--report-fd") + 1]), encode(Failed(error.body())) + b"\\n")
"""


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Callable[[str], RunningReplica]]:
    """A rank of two, which has begun, and whose process fails with this error; its home is `tmp_path`."""
    guard = Guard()

    def made(error: str) -> RunningReplica:
        script = tmp_path / "fails.py"
        script.write_text(FAILS.format(error=error))
        world = tuple(RankAddress(rank=number, worker=f"w{number}", host="127.0.0.1") for number in range(2))
        plan = replace(plan_for("x:X", "", "fake"), rendezvous=Rendezvous(rank=0, world=world))
        model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
        replica = RunningReplica(
            StartReplica(spec=LaunchSpec(model_name="toy"), model=model, plan=plan, created=1, deadline=10.0),
            worker="w0",
            home=tmp_path,
            fetch=lambda ref, progress: tmp_path,
            guard=guard,
            on_change=lambda one: None,
            command=(sys.executable, str(script)),
            shared=True,
        )
        replica.begin(plan)
        return replica

    yield made
    guard.close()


async def test_a_rank_that_has_failed_waits_for_the_word_of_another_that_died(
    rank: Callable[[str], RunningReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is told is that it lost the other, and not why."""
    monkeypatch.setattr(running, "OTHERS", 60.0)
    replica = rank("EngineError('this rank lost rank 1')")
    life = asyncio.ensure_future(replica.run())
    await until(lambda: replica.record.status.state == "STOPPING", 20.0)
    assert replica.record.status.stage == "ended: this rank lost rank 1"
    assert replica.record.status.pid is None
    replica.stop(0.0)
    await asyncio.wait_for(life, 5)
    assert replica.error is None


async def test_where_no_other_tells_of_its_end_the_rank_s_own_error_is_told(
    rank: Callable[[str], RunningReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "OTHERS", 0.05)
    replica = rank("EngineError('out of memory')")
    await asyncio.wait_for(replica.run(), 20)
    assert (replica.error, replica.final) == ("out of memory", False)


async def test_what_can_t_be_launched_is_told_at_once(rank: Callable[[str], RunningReplica], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "OTHERS", 60.0)
    replica = rank("LaunchFailed('it has no such layer')")
    await asyncio.wait_for(replica.run(), 20)
    assert (replica.error, replica.final) == ("it has no such layer", True)
