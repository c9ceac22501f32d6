"""How a rank of the engine `transformers` meets the others, and what it refuses before it does."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the engine transformers is not installed")

import torch

from xi_core.errors import EngineError, LaunchFailed, UnknownOption, XiError
from xi_core.testing.harness import plan_for
from xi_core.wire.plan import LaunchPlan, LoraModule, RankAddress, Rendezvous
from xi_plugins.engines.transformers import ranks

CPU = torch.device("cpu")


def plan(rank: int = 0, host: str = "10.0.0.1", interface: str = "eth7", count: int = 2) -> LaunchPlan:
    found = plan_for("x:Y", "", "pytorch")
    world = tuple(RankAddress(rank=n, worker=f"w{n}", host=host, ports=(23000 + n,), interface=interface) for n in range(count))
    found.rendezvous = Rendezvous(rank=rank, world=world, link="ethernet")
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch.distributed is called with, in an environment that is as it was afterwards."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    found: dict[str, Any] = {}

    def init(backend: str, **fields: Any) -> None:
        found.update(fields, backend=backend)

    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.update(device=device))
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_all_meet_at_rank_0_s_first_port(asked: dict[str, Any], rank: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ranks.join(plan(rank), CPU)
    assert (asked["backend"], asked["init_method"], asked["rank"], asked["world_size"]) == ("gloo", "tcp://10.0.0.1:23000", rank, 2)
    assert asked["timeout"].total_seconds() >= ranks.PATIENCE
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == (str(rank), "2", "0")
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth7", "=eth7"), "NCCL would take eth70 too"
    assert f"rank {rank} of 2: gloo at 10.0.0.1:23000, link ethernet, interface eth7" in caplog.text


def test_on_gpus_nccl_s_interface_is_told(asked: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ranks.join(plan(), torch.device("cuda:0"))
    assert (asked["backend"], asked["device"]) == ("cpu:gloo,cuda:nccl", torch.device("cuda:0"))
    assert caplog.text.rstrip().endswith("interface eth7")


def test_an_interface_that_the_launch_names_stays(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    ranks.join(plan(), CPU)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("ib0", "=eth7")


def test_without_a_known_interface_the_library_chooses(asked: dict[str, Any]) -> None:
    ranks.join(plan(interface="", host="fd00::1"), CPU)
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert asked["init_method"] == "tcp://[fd00::1]:23000"


def test_gpus_take_nccl_and_gloo_beside_it(asked: dict[str, Any]) -> None:
    ranks.join(plan(), torch.device("cuda", 0))
    assert asked["backend"] == "cpu:gloo,cuda:nccl"
    assert asked["device"] == torch.device("cuda", 0)


def test_ranks_that_don_t_meet_say_where(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("address in use")

    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    with pytest.raises(EngineError, match=r"the ranks did not meet at 10\.0\.0\.1:23000: address in use"):
        ranks.join(plan(), CPU)


def config(**changes: Any) -> Any:
    sizes = {"num_key_value_heads": 4, "num_attention_heads": 8, "intermediate_size": 96, "model_type": "qwen2"}
    return SimpleNamespace(**{"architectures": ["Qwen2ForCausalLM"], **sizes, **changes})


def test_a_model_that_divides_is_taken() -> None:
    ranks.check(plan(count=4), config(), quantized=False)


@pytest.mark.parametrize(
    ("changes", "count", "error", "words"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, 2, LaunchFailed, "this model is GemmaForCausalLM"),
        ({"architectures": None, "model_type": "odd"}, 2, LaunchFailed, "this model is odd"),
        ({}, 3, LaunchFailed, "num_key_value_heads of this model is 4, which can't be shared by 3 workers evenly"),
        ({"num_attention_heads": 6}, 4, LaunchFailed, "num_attention_heads of this model is 6"),
        ({"intermediate_size": 97}, 2, LaunchFailed, "intermediate_size of this model is 97"),
    ],
)
def test_a_model_that_can_t_be_cut_is_refused(changes: dict[str, Any], count: int, error: type[XiError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        ranks.check(plan(count=count), config(**changes), quantized=False)
    assert caught.value.param == "n_worker"


def test_what_is_not_served_beside_shards_is_refused() -> None:
    with pytest.raises(UnknownOption, match="aren't quantized"):
        ranks.check(plan(), config(), quantized=True)
    asked = plan()
    asked.lora_modules = [LoraModule(name="a", path="b")]
    with pytest.raises(UnknownOption, match="no LoRA modules beside a sharded model"):
        ranks.check(asked, config(), quantized=False)


def test_a_model_that_was_loaded_whole_after_all_is_noticed() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn, self.mlp = torch.nn.Module(), torch.nn.Module()
            self.self_attn.k_proj = self.self_attn.o_proj = self.mlp.gate_proj = self.mlp.down_proj = torch.nn.Linear(4, 4)

    with pytest.raises(EngineError, match=r"has not cut self_attn\.k_proj\.weight into 2 parts"):
        ranks.check_parts(Layer(), 2)
    with pytest.raises(EngineError, match=r"has not cut self_attn\.k_proj\.weight into 2 parts"):
        ranks.check_parts(torch.nn.Linear(4, 4), 2)


def test_a_replica_of_one_rank_loads_all() -> None:
    assert ranks.arguments(plan_for("x:Y", "", "pytorch")) == {}
    whole = ranks.arguments(plan(count=4))["distributed_config"]
    assert (whole.tp_size, whole.tp_plan) == (4, "auto")
