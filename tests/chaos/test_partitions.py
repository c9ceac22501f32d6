"""Machines that lose each other: a namespace for each, the cable pulled. Under load, which no request may feel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import networks
import pytest
from town import Load, Town, eventually

from xi_core.cluster.lifecycle import LEASE

pytestmark = pytest.mark.skipif(bool(networks.why_not()), reason=networks.why_not() or "-")
GATEWAY_PORT = 18997


@pytest.fixture
def network() -> Iterator[networks.Network]:
    made = networks.Network(["w1", "w2", "g1"])
    try:
        made.build()
        yield made
    finally:
        made.remove()


@pytest.fixture
def far(network: networks.Network, tmp_path: Path) -> Iterator[Town]:
    """Two workers on machines of their own, with a replica each."""
    with Town(tmp_path, network.address("head"), network.inside) as town:
        town.work("w1")
        town.work("w2")
        town.launch(2)
        assert town.places() == ["w1", "w2"]
        yield town


@pytest.mark.parametrize("how", ["unplugged", "down"])
def test_a_long_partition_moves_the_replica_and_heals_to_one_copy(network: networks.Network, far: Town, how: str) -> None:
    stale = far.replicas("w1")
    assert len(stale) == 1
    with Load(far) as load:
        with getattr(network, how)("w1"):
            eventually(lambda: far.places() == ["w2", "w2"], 30.0, "the replica to be placed elsewhere")
            load.more()
            assert far.replicas("w1") == stale, "nobody could tell it to stop, and it serves who reaches it"
        far.settled(["w2", "w2"])
        assert not far.replicas("w1")
        eventually(lambda: set(far.pids("worker")) == {"w1", "w2"}, 30.0, "the worker to be back")
        load.more()
    load.all_well()
    assert far.said("w1").count("Traceback") == 0
    far.http.put("/v1/models/xi-tiny/replicas", json={"replica": 3}).raise_for_status()
    far.settled(["w1", "w2", "w2"])


def test_a_partition_shorter_than_a_lease_moves_nothing(network: networks.Network, far: Town) -> None:
    before, workers = far.pids("replica"), far.pids("worker")
    with Load(far) as load:
        for _ in range(2):
            with network.unplugged("w1"):
                time.sleep(LEASE / 2)  # the length of the partition is what is tested
            load.more()
            far.settled(["w1", "w2"])
            # TCP's own pauses between tries may keep the link silent for longer than the partition, so that the worker dials anew.
            eventually(lambda: far.pids("worker") == workers, 10.0, "both workers to be linked")
            assert far.pids("replica") == before
    load.all_well()


def test_a_partition_that_ends_before_the_worker_is_given_up_moves_nothing(network: networks.Network, far: Town) -> None:
    """The link is lost; the worker has two leases to come back."""
    before = far.pids("replica")
    with Load(far) as load:
        with network.unplugged("w1"):
            eventually(lambda: "worker w1 is away" in far.said("head"), 10.0, "the supervisor to miss it")
        far.settled(["w1", "w2"])
        load.more()
    load.all_well()
    assert far.pids("replica") == before


def test_a_gateway_that_loses_a_worker_alone_serves_from_the_others(network: networks.Network, far: Town) -> None:
    """Supervisor and worker still see each other, so that nothing moves; the gateway's requests go to the other worker."""
    before = far.pids("replica")
    far.gateway("g1")
    url = f"http://{network.address('g1')}:{GATEWAY_PORT}"
    with far.visitor(url) as http:
        eventually(lambda: far.metrics(http).get('xi_replicas_ready{model="xi-tiny"}') == 2, 30.0, "the gateway to know both")
        with Load(far, url=url) as load:
            with network.apart("g1", "w1"):
                eventually(lambda: far.metrics(http)['xi_replicas_ready{model="xi-tiny"}'] == 1, 10.0, "the gateway to miss it")
                load.more()
                assert (far.pids("replica"), far.places(), far.usable()) == (before, ["w1", "w2"], 2)
            eventually(lambda: far.metrics(http)['xi_replicas_ready{model="xi-tiny"}'] == 2, 30.0, "both to be used again")
            load.more()
        load.all_well()


def test_a_gateway_that_loses_the_supervisor_serves_on(network: networks.Network, far: Town) -> None:
    far.gateway("g1")
    url = f"http://{network.address('g1')}:{GATEWAY_PORT}"
    with far.visitor(url) as http:
        eventually(lambda: far.metrics(http).get('xi_replicas_ready{model="xi-tiny"}') == 2, 30.0, "the gateway to know both")
        with Load(far, url=url) as load:
            with network.apart("g1", "head"):
                eventually(lambda: "g1" not in far.pids("gateway"), 20.0, "the supervisor to miss the gateway")
                load.more()
                far.http.put("/v1/models/xi-tiny/replicas", json={"replica": 3}).raise_for_status()
                eventually(lambda: far.status()["ready_replicas"] == 3, 30.0, "one more")
                load.more()
            eventually(lambda: far.metrics(http)['xi_replicas_ready{model="xi-tiny"}'] == 3, 30.0, "the table to be told anew")
        load.all_well()
