"""What a worker removes of its cache: nothing that a replica uses, be it another worker's of the same XI_HOME."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.cluster.cached_models import CachedModels
from xi_core.cluster.guard import Guard
from xi_core.cluster.messages import FreedModels, RemoveCache, StartReplica
from xi_core.cluster.running import RunningReplica
from xi_core.config import Settings
from xi_core.errors import Conflict
from xi_core.models.cache import CachedModel, ModelCache
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.hashing import CachedFile
from xi_core.plugins import PluginHub
from xi_core.testing.harness import plan_for
from xi_core.testing.waiting import until

OLD, NEW = "a" * 40, "b" * 40


def stored(home: Path, commit: str) -> Path:
    """A commit of the model a/m, put into the cache as a download does."""
    cache, body = ModelCache(home), commit.encode()
    folder = cache.partial("hub", "a/m", commit)
    (folder / "part").write_bytes(body)
    sha256, size = cache.take(folder / "part", folder, hashlib.sha256(body).hexdigest())
    file = CachedFile(name="weights.gguf", size=size, sha256=sha256)
    return cache.publish(CachedModel(source="hub", id="a/m", revision=commit, files=[file], created=1.0), None)


def worker(name: str, home: Path, used: dict[str, str] | None = None) -> CachedModels:
    return CachedModels(name, PluginHub.load().sources, Settings(home=str(home)), lambda: used or {})


async def remove(models: CachedModels, revision: str | None = None) -> int:
    freed = await models.calls()[RemoveCache](RemoveCache(name="a/m", names=["a/m"], revision=revision))
    assert isinstance(freed, FreedModels)
    return freed.freed


@pytest.fixture
def guard() -> Iterator[Guard]:
    made = Guard()
    yield made
    made.close()


def replica_of(artifact: Path, home: Path, guard: Guard) -> RunningReplica:
    """It waits for other ranks once it has its artifact, and starts no process."""
    model = ModelSpec(name="m", format="toy", source=SourceRef(source="hub", id="a/m"))
    start = StartReplica(spec=LaunchSpec(model_name="m"), model=model, plan=plan_for("x:X", "", "fake"), created=1, deadline=10.0)
    return RunningReplica(
        start, worker="w1", home=home, fetch=lambda ref, progress: artifact, guard=guard, on_change=lambda one: None, shared=True
    )


@pytest.mark.parametrize("file", ["", "weights.gguf"])
async def test_no_worker_removes_what_a_replica_of_another_uses(tmp_path: Path, guard: Guard, file: str) -> None:
    folder = stored(tmp_path, NEW)
    one = replica_of(folder / file, tmp_path, guard)
    life = asyncio.ensure_future(one.run())
    await until(lambda: one.record.status.stage == "waiting for the other ranks", 10.0)
    with pytest.raises(Conflict, match="'a/m' is used by a replica of another worker"):
        await remove(worker("w2", tmp_path))
    with pytest.raises(Conflict, match="'a/m' is used by m-0 on worker w1"):
        await remove(worker("w1", tmp_path, {"m-0": str(folder / file)}))
    assert (folder / "weights.gguf").read_bytes() == NEW.encode()
    one.stop(0.0)
    await asyncio.wait_for(life, 10)
    assert await remove(worker("w2", tmp_path)) == len(NEW)
    assert not folder.exists()


async def test_another_commit_than_the_one_that_serves_is_removed(tmp_path: Path, guard: Guard) -> None:
    old, new = stored(tmp_path, OLD), stored(tmp_path, NEW)
    one = replica_of(new, tmp_path, guard)
    life = asyncio.ensure_future(one.run())
    await until(lambda: one.record.status.stage == "waiting for the other ranks", 10.0)
    assert await remove(worker("w2", tmp_path), OLD) == len(OLD)
    assert (old.exists(), new.exists()) == (False, True)
    one.stop(0.0)
    await asyncio.wait_for(life, 10)


async def test_a_folder_that_only_looks_like_a_cached_model_may_serve(tmp_path: Path) -> None:
    folder = ModelCache(tmp_path).root / "mine" / "my model" / "v1"
    with ModelCache(tmp_path).serving(folder), ModelCache(tmp_path).serving(tmp_path):
        pass
