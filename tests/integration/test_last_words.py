"""What a replica has answered reaches its gateway also where the replica ends right after: nothing is cut when it drains."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec

from xi_core.serving.pooling_request import EMBEDDINGS
from xi_core.testing.harness import plan_for
from xi_core.testing.replica_process import replica
from xi_core.wire import frames
from xi_core.wire.frames import Data, End, Frame, Pong, Submit
from xi_core.wire.plan import LaunchPlan, ServingLimits
from xi_plugins.transports.zmq import ZmqTransport

VECTORS = """
from xi_core.engine.base import EngineStats, LoadedModel
from xi_core.engine.pooling import EmbeddingEngine, PoolingInput
from xi_core.wire.manifest import pooling_manifest

class Vectors(EmbeddingEngine):
    vocabulary_size, dimensions = 256, 4096

    def load(self, plan, progress):
        return LoadedModel(manifest=pooling_manifest("embeddings"), context_length=64, slots=64)

    def check(self):
        pass

    def stats(self):
        return EngineStats()

    def close(self, grace):
        pass

    def encode(self, texts):
        return [PoolingInput([1]) for _ in texts]

    def embed(self, inputs):
        return [bytes(4 * self.dimensions) for _ in inputs]
"""
MANY = 1024


def vectors(folder: Path) -> LaunchPlan:
    """The plan of a replica of the engine above."""
    (folder / "vectors.py").write_text(VECTORS)
    plan = plan_for("vectors:Vectors", "nowhere", "fake")
    plan.endpoint = f"ipc://{folder}/r.sock"
    plan.limits = ServingLimits(grace=20.0)
    return plan


async def test_a_large_answer_is_sent_to_its_end_though_the_replica_is_told_to_stop(tmp_path: Path) -> None:
    plan = vectors(tmp_path)
    got: list[Frame] = []

    def receive(message: bytes) -> None:
        time.sleep(0.01)  # a gateway that has more to do than to read this
        received = frames.decode_from_replica(message)
        got.extend([] if isinstance(received, Pong) else received.frames)

    lost = asyncio.Event()
    with replica(plan, tmp_path) as process:
        process.until("ready")
        channel = ZmqTransport().connect(plan.endpoint, receive, lost.set)
        body = {"model": "m", "input": ["x"] * MANY}
        channel.send(frames.encode(Submit(1, EMBEDDINGS, msgspec.json.encode(body))))
        while not got:
            await asyncio.sleep(0.01)
        process.child.terminate()
        async with asyncio.timeout(30):
            await lost.wait()
    sizes = [len(frame.data) for frame in got if isinstance(frame, Data)]
    assert len(sizes) > 8, "in pieces, of which only some fit between the two processes"
    assert isinstance(got[-1], End)


async def test_one_that_is_told_to_stop_says_so_before_its_channel_ends(tmp_path: Path) -> None:
    """Else a request that comes too late would count as one that may have killed it."""
    plan = vectors(tmp_path)
    got: list[Any] = []
    lost = asyncio.Event()
    with replica(plan, tmp_path) as process:
        process.until("ready")
        channel = ZmqTransport().connect(plan.endpoint, lambda message: got.append(frames.decode_from_replica(message)), lost.set)
        channel.send(frames.encode(frames.Ping(1)))
        while not got:
            await asyncio.sleep(0.01)
        process.child.terminate()
        async with asyncio.timeout(30):
            await lost.wait()
    last = got[-1]
    assert isinstance(last, Pong)
    assert last.load.draining
