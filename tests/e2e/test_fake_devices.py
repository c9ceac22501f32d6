"""Devices made up by XI_FAKE_DEVICES, end to end: where replicas go, what is kept for each, and what is refused with which words."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec, ModelStatus
from xi_core.client import Client
from xi_core.errors import InvalidRequest, LaunchError, XiError
from xi_core.testing.server import RunningServer
from xi_core.testing.waiting import DeadlineExceeded

ENGINE = "llama.cpp"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with two devices, each with room for three copies of xi-tiny and what a device keeps for itself."""
    with RunningServer(tmp_path_factory.mktemp("two"), env={"XI_FAKE_DEVICES": "2x2GiB"}) as server:
        yield server.client


@pytest.fixture
def launch(two: Client) -> Iterator[Any]:
    """Launch xi-tiny and wait; ended after the test."""
    yield lambda **fields: launched(two, **fields)
    for model in two.models():
        if model.parent is None:
            two.terminate(model.id)


def launched(client: Client, **fields: Any) -> ModelStatus:
    return client.launch(LaunchSpec(model_name="xi-tiny", model_engine=ENGINE, n_gpu=fields.pop("n_gpu", 1), **fields))


def seen(client: Client) -> list[str]:
    """What placement would say of each device now."""
    (report,) = client.explain(LaunchSpec(model_name="xi-tiny", model_uid="another", model_engine=ENGINE, n_gpu=1))
    return [verdict.reason for verdict in report.candidates]


def spread(status: ModelStatus) -> dict[str, int]:
    """How many replicas each device holds."""
    assert status.state == "READY"
    return dict(collections.Counter(device for replica in status.replicas for device in replica.devices))


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({"replica": 2}, [1, 1]),
        ({"replica": 3, "gpu_pool": 2}, [1, 2]),
        ({"replica": 3, "gpu_pool": 1}, [3]),
        ({"replica": 1, "n_gpu": 2}, [1, 1]),
        ({"replica": 2, "gpu_idx": [1]}, [2]),
    ],
)
def test_replicas_over_two_devices(launch: Any, fields: dict[str, Any], held: list[int]) -> None:
    assert sorted(spread(launch(**fields)).values()) == held


def test_four_on_four_and_they_answer(tmp_path: Path) -> None:
    with RunningServer(tmp_path, env={"XI_FAKE_DEVICES": "cuda:0=1GiB,cuda:1=1GiB,2x1GiB", "CUDA_VISIBLE_DEVICES": "0"}) as server:
        client = server.client
        assert spread(launched(client, replica=4)) == {"fake-cuda:0": 1, "fake-cuda:1": 1, "fake:2": 1, "fake:3": 1}
        answer = client.chat("xi-tiny", [{"role": "user", "content": "What is the capital of France?"}])
        assert "Paris" in answer.choices[0].message.content
        (worker,) = client.workers()
        assert [device.replicas for device in worker.devices] == [1, 1, 1, 1]
        assert all("0.6 GiB are needed, 0.4 of 1.0 GiB are free" in reason for reason in seen(client))
        client.terminate("xi-tiny")
        assert all("1.0 GiB free" in reason for reason in seen(client))


def test_too_little_memory_is_explained_and_nothing_is_kept(tmp_path: Path) -> None:
    with RunningServer(tmp_path, env={"XI_FAKE_DEVICES": "2x0.5GiB"}) as server:
        client = server.client
        before = seen(client)
        with pytest.raises(LaunchError, match=r"fake:0: 0\.6 GiB are needed, 0\.5 of 0\.5 GiB are free.*fake:1: 0\.6 GiB") as caught:
            launched(client)
        assert "ask for fewer, or for none to run on CPU" in caught.value.message
        assert client.models() == []
        assert seen(client) == before
        assert launched(client, n_gpu=None).state == "READY"
        assert seen(client) == before


def test_a_launch_that_fits_in_part_keeps_nothing(two: Client) -> None:
    before = seen(two)
    with pytest.raises(LaunchError, match="GiB are needed"):
        launched(two, replica=7)
    assert two.models() == []
    assert seen(two) == before


def test_the_dry_run_tells_of_each_device(two: Client) -> None:
    first, second, third = two.explain(LaunchSpec(model_name="xi-tiny", model_engine=ENGINE, n_gpu=1, replica=3, gpu_pool=2))
    assert [one.ranks[0].devices for one in (first, second, third)] == [["fake:0"], ["fake:1"], ["fake:0"]]
    assert [(v.device, v.taken) for v in first.candidates] == [("fake:0", True), ("fake:1", False)]
    assert "2.0 GiB free" in first.candidates[0].reason
    assert "1.4 GiB free" in third.candidates[0].reason
    assert seen(two)[0].startswith("0 replicas, 2.0 GiB free")


def test_one_replica_per_device_where_that_is_set(tmp_path: Path) -> None:
    env = {"XI_FAKE_DEVICES": "2x80GiB", "XI_ALLOW_MULTI_REPLICA_PER_GPU": "0"}
    with RunningServer(tmp_path, env=env) as server:
        client = server.client
        with pytest.raises(LaunchError, match=r"fake:0: holds 1 replica\(s\), and XI_ALLOW_MULTI_REPLICA_PER_GPU=0 .*fake:1: holds 1"):
            launched(client, replica=3)
        assert client.models() == []
        assert spread(launched(client, replica=2)) == {"fake:0": 1, "fake:1": 1}


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"gpu_pool": 1, "n_gpu": 2}, "gpu_pool"), ({"gpu_pool": 1, "n_gpu": None}, "gpu_pool"), ({"gpu_idx": [0], "n_gpu": 2}, "gpu_idx")],
)
def test_layouts_that_contradict_themselves(two: Client, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        launched(two, **fields)
    assert caught.value.param == field


def test_more_devices_than_there_are(two: Client) -> None:
    with pytest.raises(XiError, match=r"its worker has 2 device\(s\) that would do, and 3 are needed"):
        launched(two, n_gpu=3)
    with pytest.raises(XiError, match="not in the pool 7"):
        launched(two, gpu_idx=[7])


def test_a_description_that_cannot_be_read_stops_the_server(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, env={"XI_FAKE_DEVICES": "4 x many"})
    with contextlib.suppress(DeadlineExceeded):  # the gateway may answer before the worker has read the description
        server.start()
    try:
        assert server.process.wait(20.0) > 0
    finally:
        server.kill()
    assert "XI_FAKE_DEVICES: '4 x many' is neither like 4x80GiB nor like cuda:0=80GiB" in server.log.read_text()
