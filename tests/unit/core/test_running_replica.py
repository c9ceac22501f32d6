"""A replica on its worker, before it has a process."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from xi_core.api.control import LaunchSpec
from xi_core.cluster.guard import Guard
from xi_core.cluster.messages import StartReplica
from xi_core.cluster.running import RunningReplica
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.source import Progress
from xi_core.testing.harness import plan_for


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
