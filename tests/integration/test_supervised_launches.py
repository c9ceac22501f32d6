"""What a launch asks of a supervisor and gets, and what can't be launched."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
from supervisor_stage import Stage, alive

from xi_core.api.control import LaunchSpec
from xi_core.cluster import messages as m
from xi_core.errors import (
    ArtifactError,
    ChannelFull,
    Conflict,
    EngineNotInstalled,
    InvalidRequest,
    LaunchError,
    ModelNotFound,
    NoPlacement,
    Unavailable,
    UnknownEngine,
    UnknownModel,
    UnknownOption,
    XiError,
)
from xi_core.testing.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


async def test_launch_publish_and_terminate(stage: Stage) -> None:
    await stage.link.call(m.Subscribe("g", 1))
    assert await stage.launch(replica=2) == "toy"
    found = await stage.until("READY")
    assert [r.replica_id for r in found.replicas] == ["toy-0", "toy-1"]
    assert (found.engine, found.context_length, found.replicas[0].worker) == ("stub", 64, "w1")
    await until(lambda: bool(stage.notices) and len(stage.notices[-1].models[0].replicas) == 2)
    assert stage.notices[0].full
    assert [n.version for n in stage.notices] == list(range(stage.notices[0].version, stage.notices[-1].version + 1))
    route = stage.notices[-1].models[0]
    assert route.endpoints == ["/v1/completions"]
    assert route.replicas[0].endpoint.startswith(f"ipc://{stage.folder}/")
    cluster = await stage.link.call(m.GetCluster())
    roles = [p.role for p in cluster.processes]
    assert sorted(roles) == ["gateway", "keeper", "replica", "replica", "supervisor", "worker"]
    pids = [r.pid for r in found.replicas]
    await stage.link.call(m.Terminate("toy"))
    assert not any(alive(pid) for pid in pids if pid)
    with pytest.raises(ModelNotFound, match="launched: none"):
        await stage.status()
    await until(lambda: stage.notices[-1].removed == ["toy"])
    assert (stage.folder / "home" / "logs" / "toy-0.log").read_text().startswith("hello from toy-0")


async def test_a_gateway_that_takes_no_news_is_let_go_so_that_it_begins_anew(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of them its table would be wrong until the next change."""
    await stage.link.call(m.Subscribe("g", 1))
    (gateway,) = stage.supervisor._executor.gateways
    stage.client()

    def full(notice: object) -> None:
        raise ChannelFull("it doesn't read")

    monkeypatch.setattr(gateway, "notify", full)
    await stage.launch()
    await until(lambda: gateway.closed.is_set())
    assert gateway not in stage.supervisor._executor.gateways


async def test_the_same_launch_and_another(stage: Stage) -> None:
    await asyncio.gather(stage.launch(), stage.launch(model_uid="toy", size_in_billions=None))
    await stage.until("READY")
    pid = (await stage.status()).replicas[0].pid
    await stage.launch()
    assert (await stage.status()).replicas[0].pid == pid
    with pytest.raises(Conflict, match="another spec"):
        await stage.launch(replica=2)


async def test_only_one_of_the_same_launches_has_begun_it(stage: Stage) -> None:
    async def existed() -> bool:
        answer: m.Launched = await stage.link.call(m.Launch(LaunchSpec(model_name="toy")))
        return answer.existed

    assert sorted(await asyncio.gather(existed(), existed(), existed())) == [False, True, True]
    assert await existed()
    await stage.until("READY")
    assert await existed()
    await stage.link.call(m.Terminate("toy"))
    assert not await existed()


async def test_an_unknown_engine_is_told_also_under_a_name_that_is_taken(stage: Stage) -> None:
    """By a launch that is under way, and by one that runs: the other spec is not what is wrong."""
    first = asyncio.create_task(stage.launch())
    await asyncio.sleep(0)  # it is asked for
    with pytest.raises(UnknownEngine, match=r"unknown engine 'stubb'; did you mean 'stub'\? known: .*absent"):
        await stage.launch(model_engine="stubb")
    await first
    await stage.until("READY")
    with pytest.raises(UnknownEngine, match="unknown engine 'stubb'"):
        await stage.launch(model_engine="stubb")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"name": "tox"}, UnknownModel, "did you mean 'toy'"),
        ({"model_engine": "nope"}, UnknownEngine, "unknown engine 'nope'; known:.*stub"),
        (
            {"model_engine": "absent"},
            EngineNotInstalled,
            "absentlib is not installed; install it and start xi again: pip install 'absentlib>=2'",
        ),
        ({"model_engine": "llama.cpp"}, LaunchError, "can't load toy as toy: it loads ggufv2; engines that can: stub, absent"),
        ({"model_engine": "stub", "options": {"colour": 1}}, UnknownOption, "no option 'colour'; its options: mode, size"),
        ({"options": {"size": "x"}}, UnknownOption, "option 'size'"),
        ({"env": {"LD_PRELOAD": "x"}}, InvalidRequest, "LD_PRELOAD"),
        ({"name": "~nobody-of-this-name/m"}, ArtifactError, "no such home directory as that of '~nobody-of-this-name/m'"),
        ({"model_path": "~nobody-of-this-name/m"}, ArtifactError, "no such home directory"),
        ({"name": "/" + "x" * 3000}, ArtifactError, "x can't be read: File name too long"),
        ({"name": "x" * 3000}, UnknownModel, "unknown model"),
        ({"n_gpu": -1}, InvalidRequest, "n_gpu"),
        ({"source": "nope"}, InvalidRequest, "unknown model source 'nope'; known: "),
        ({"scheduler": "nope"}, InvalidRequest, "unknown scheduler 'nope'; known: "),
        ({"gpu_idx": [0]}, NoPlacement, r"no worker has 1 device\(s\) to give.*w1: has no devices"),
        ({"gpu_idx": [0], "n_gpu": None}, InvalidRequest, "gpu_idx names devices, but n_gpu asks for none"),
        ({"model_type": "image"}, InvalidRequest, "model type 'image'"),
        ({"model_format": "mlx"}, UnknownModel, "has no model_format 'mlx' here; it has: toy"),
        ({"name": "/nowhere/m.gguf"}, ArtifactError, "no file or directory at /nowhere/m.gguf"),
    ],
)
async def test_what_cannot_be_launched_is_told_to_the_caller(
    stage: Stage, fields: dict[str, Any], error: type[XiError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await stage.launch(**fields)
    assert (await stage.link.call(m.ListModels())).models == []


async def test_engines(stage: Stage) -> None:
    engines = {e.name: e for e in (await stage.link.call(m.ListEngines(LaunchSpec(model_name="toy")))).engines}
    assert (engines["stub"].available, engines["stub"].model, engines["stub"].plugin) == (True, "yes", "stub")
    assert (engines["absent"].available, engines["absent"].model) == (False, "yes")
    assert "pip install" in engines["absent"].reason


async def test_no_worker_yet(workerless: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xi_core.cluster.executor.JOIN_TIMEOUT", 0.2)
    with pytest.raises(Unavailable, match="no worker is connected"):
        await workerless.launch()


async def test_the_plan_that_a_replica_gets(stage: Stage) -> None:
    await stage.launch(options={"size": "3"})
    await stage.until("READY")
    plan = stage.worker._running["toy-0"].plan
    assert plan.options == {"size": 3}
    assert plan.artifact.path == str(stage.folder / "weights")
    assert plan.engine.path == "nowhere:Stub"
    assert json.dumps(plan.limits.grace) == "1.0"
