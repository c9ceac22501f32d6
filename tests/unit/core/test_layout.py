"""Layouts that hold together or don't: sizes of parallelism, and what each entry of `replica_config` asks for."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from xi_core.api.control import LaunchSpec, ReplicaConfig
from xi_core.cluster import layout
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Share, Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member
from xi_core.cluster.replicas import Start
from xi_core.engine.info import EngineInfo, EngineOptions, ShardRequest, Support
from xi_core.errors import InvalidRequest, LaunchError, UnknownOption, XiError
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.testing import fake_plugin
from xi_plugins.engines.sglang.plugin import xi_engines as sglang
from xi_plugins.engines.vllm.plugin import xi_engines as vllm
from xi_plugins.schedulers.idle_first import IdleFirst

GIB = 2**30
MODEL = ModelSpec(name="toy", format="pytorch", source=SourceRef(source="local", id="/x"))
(VLLM,), (SGLANG,) = vllm(), sglang()
PLAIN: EngineInfo = next(info for info in fake_plugin.xi_engines() if info.name == "counting")


def one_each(request: ShardRequest) -> Support:
    return Support(ok=request.n_gpu < 2, reason=f"one GPU for each rank, not {request.n_gpu}")


def check(engine: EngineInfo = PLAIN, n_gpu: int = 1, asked: Any = "auto", **fields: Any) -> None:
    spec = LaunchSpec(model_name="toy", model_uid="m", n_gpu=asked, **fields)
    layout.check(replace(spec, options=engine.check_options(spec.options)), MODEL, engine, n_gpu)


def refused(*words: str, param: str, **given: Any) -> XiError:
    with pytest.raises(XiError) as raised:
        check(**given)
    assert isinstance(raised.value, InvalidRequest | LaunchError)
    assert raised.value.param == param
    for word in words:
        assert word in raised.value.message, raised.value.message
    return raised.value


# ---- sizes on one worker ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [VLLM, SGLANG], ids=["vLLM", "SGLang"])
@pytest.mark.parametrize(
    ("options", "n_gpu"),
    [
        ({"tp": "4"}, 2),
        ({"tp": 2}, 4),
        ({"tensor-parallel-size": 2, "pp": 2}, 2),
        ({"pp": 4}, 2),
        ({"dp": 3}, 4),
    ],
)
def test_sizes_that_are_not_the_devices_are_refused_for_one_worker_too(engine: EngineInfo, options: dict[str, Any], n_gpu: int) -> None:
    error = refused(f"this replica has {n_gpu}", "--n-gpu", param=next(iter(engine.check_options(options))), engine=engine, n_gpu=n_gpu,
                    options=options)  # fmt: skip
    assert isinstance(error, UnknownOption)


@pytest.mark.parametrize("engine", [VLLM, SGLANG], ids=["vLLM", "SGLang"])
@pytest.mark.parametrize(
    ("options", "n_gpu"),
    [({}, 0), ({}, 4), ({"tp": 2}, 0), ({"tp": 2}, 2), ({"tp": 2, "pp": 2}, 4), ({"pp": 2}, 4), ({"dp": 2}, 4), ({"dp": 2, "tp": 2}, 4)],
)
def test_sizes_that_come_to_the_devices(engine: EngineInfo, options: dict[str, Any], n_gpu: int) -> None:
    check(engine, n_gpu, options=options)


def test_attention_in_data_parallel_takes_no_devices_of_its_own() -> None:
    check(SGLANG, 2, options={"tp": 2, "dp": 2, "enable_dp_attention": True})


def test_an_engine_that_says_its_options_is_asked_nothing() -> None:
    class Own(EngineOptions):
        tensor_parallel_size: int = 1

    check(replace(PLAIN, options=Own), 2, options={"tensor_parallel_size": 4})


# ---- entries of replica_config ------------------------------------------------------------------


def entries(*own: dict[str, Any], **given: Any) -> dict[str, Any]:
    return {"replica": len(own), "replica_config": [ReplicaConfig(**one) for one in own], **given}


def test_each_entry_is_looked_at_by_its_own_numbers() -> None:
    sharing = replace(PLAIN, shard=one_each)
    refused("replica_config[1].n_gpu is 2", "one GPU for each rank", param="replica_config[1].n_gpu",
            **entries({}, {"n_gpu": 2}, engine=sharing, n_worker=2))  # fmt: skip
    refused("replica_config[0].n_gpu is 4", "tensor_parallel_size 2", param="replica_config[0].n_gpu",
            **entries({"n_gpu": 4}, engine=VLLM, options={"tp": 2}))  # fmt: skip
    refused("replica_config[0].gpu_idx names devices, but replica_config[0].n_gpu asks for none", param="replica_config[0].gpu_idx",
            **entries({"n_gpu": 0, "gpu_idx": [0]}))  # fmt: skip
    refused("replica_config[0].gpu_idx names devices, but n_gpu asks for none", param="replica_config[0].gpu_idx",
            **entries({"gpu_idx": [0]}, n_gpu=0, asked=None))  # fmt: skip
    refused("replica_config[0].gpu_idx names 1 device(s), and replica_config[0].n_gpu asks for 2", param="replica_config[0].gpu_idx",
            **entries({"n_gpu": 2, "gpu_idx": [0]}))  # fmt: skip
    refused("gpu_idx names 1 device(s), and replica_config[0].n_gpu asks for 2", param="replica_config[0].n_gpu",
            **entries({"n_gpu": 2}, gpu_idx=[0]))  # fmt: skip
    refused("replica_config[0].gpu_idx names 1 device(s), and n_gpu asks for 2", param="replica_config[0].gpu_idx",
            **entries({"gpu_idx": [0]}, n_gpu=2, asked=2))  # fmt: skip
    refused("gpu_pool is 1", "replica_config[1].n_gpu", "takes 2 device(s)", param="gpu_pool",
            **entries({}, {"n_gpu": 2}, gpu_pool=1))  # fmt: skip


def test_what_an_entry_says_holds_instead_of_what_the_launch_says() -> None:
    check(**entries({"n_gpu": 2}, engine=VLLM, options={"tp": 2}))
    check(**entries({"n_gpu": 1}, gpu_pool=1, n_gpu=0, asked=None))
    check(**entries({"n_gpu": 0}, {}, gpu_idx=[0]))
    refused("gpu_pool limits devices", param="gpu_pool", **entries({"n_gpu": 0}, gpu_pool=1))


def test_who_names_devices_in_an_entry_wants_one() -> None:
    spec = LaunchSpec(model_name="toy", **entries({"worker": "w1", "gpu_idx": [9]}, {}, {"n_gpu": 3}))
    assert layout.counts(spec, 0) == [1, 0, 3]
    assert layout.counts(spec, 2) == [2, 2, 3]
    assert layout.counts(LaunchSpec(model_name="toy"), 2) == []


# ---- what is promised to them -------------------------------------------------------------------


def member(name: str = "w1", devices: int = 4) -> Member:
    found = [Device(id=f"cuda:{n}", kind="cuda", memory=8 * GIB, memory_free=8 * GIB) for n in range(devices)]
    return Member(name, "i1", found, ("e",))


def of_entries(*own: dict[str, Any], shares: list[Share], uid: str = "m") -> Wanted:
    spec = LaunchSpec(model_name="toy", model_uid=uid, n_gpu=None, **entries(*own))
    return Wanted(uid=uid, spec=spec, model=MODEL, engine="e", n_gpu=0, created=1, shares=shares)


def cluster() -> Lifecycle:
    core = Lifecycle(IdleFirst(), "e", launch_timeout=100.0, grace=5.0)
    core.worker_joined(0.0, member(), [])
    return core


def test_memory_is_kept_by_what_each_entry_takes() -> None:
    core = cluster()
    what = of_entries({"n_gpu": 1}, {"n_gpu": 2}, {}, shares=[Share(1, 6 * GIB), Share(2, 3 * GIB, 0.5), Share(0)])
    starts = [action for action in core.accept(0.0, what) if isinstance(action, Start)]
    assert [len(s.assignments[0].devices) for s in starts] == [1, 2, 0]
    view = core.view_of("w1")
    assert view is not None
    assert sorted(d.memory_free // GIB for d in view.devices) == [2, 4, 4, 8]
    launch = core.find("m")
    assert launch is not None
    promised = [launch.wanted_of(s.replica_id) for s in starts]
    assert [(p.n_gpu, p.memory, p.memory_share) for p in promised] == [(1, 6 * GIB, 0.0), (2, 3 * GIB, 0.5), (0, 0, 0.0)]
    assert launch.wanted_of("nobody") is launch.wanted
    for start in starts:
        core.replica_gone(1.0, start.incarnation)
    assert [d.memory_free for d in view.devices] != [8 * GIB] * 4
    after = core.view_of("w1")
    assert after is not None
    assert [d.memory_free for d in after.devices] == [8 * GIB] * 4


def test_too_little_memory_for_an_entry_is_refused() -> None:
    with pytest.raises(XiError, match=r"9\.0 GiB are needed"):
        cluster().accept(0.0, of_entries({"n_gpu": 1}, shares=[Share(1, 9 * GIB)]))


def test_a_launch_of_a_former_xi_that_was_written_down_without_shares() -> None:
    what = of_entries({"n_gpu": 1}, {}, shares=[])
    assert [(what.of(n).n_gpu, what.of(n).memory) for n in (0, 1, 2)] == [(1, 0), (0, 0), (0, 0)]
