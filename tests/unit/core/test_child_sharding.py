"""How a server's parallelism is spread over workers, and the warning where it crosses a slow network."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from xi_core.engine.child_sharding import SIZES, spread
from xi_core.errors import UnknownOption
from xi_core.testing.harness import plan_for
from xi_core.wire.plan import LaunchPlan, RankAddress, Rendezvous


def plan(link: str = "ethernet", rank: int = 0, workers: int = 2, devices: int = 4, **options: Any) -> LaunchPlan:
    """One rank's, on `devices` of each of `workers`."""
    names = tuple(f"cuda:{n}" for n in range(devices))
    world = tuple(RankAddress(rank=n, worker=f"w{n}", host=f"10.0.0.{n}", devices=names) for n in range(workers))
    made = msgspec.structs.replace(plan_for("engine:Class", "/nothing", "pytorch", "uid", **options), devices=list(names))
    return msgspec.structs.replace(made, rendezvous=Rendezvous(rank=rank, world=world, link=link))


def test_tensor_parallelism_takes_what_the_launch_leaves() -> None:
    assert spread("vLLM", plan(), SIZES) == {"tensor_parallel_size": 8}
    assert spread("vLLM", plan(pipeline_parallel_size=2), SIZES) == {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}
    with pytest.raises(UnknownOption):
        spread("vLLM", plan(tensor_parallel_size=3), SIZES)


def test_one_that_crosses_the_network_is_warned_of_with_what_would_not(caplog: pytest.LogCaptureFixture) -> None:
    spread("vLLM", plan(), SIZES)
    assert "over 8 devices on 2 workers" in caplog.text
    assert "--tensor-parallel-size 4 --pipeline-parallel-size 2" in caplog.text


@pytest.mark.parametrize(
    "quiet", [plan(pipeline_parallel_size=2), plan(link="infiniband"), plan(link="loopback"), plan(link=""), plan(rank=1), plan(devices=0)]
)
def test_others_are_not(quiet: LaunchPlan, caplog: pytest.LogCaptureFixture) -> None:
    spread("vLLM", quiet, SIZES)
    assert not caplog.text
