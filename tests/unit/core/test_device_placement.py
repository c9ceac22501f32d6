"""Which devices replicas are placed on: pools, configurations and memory; dry runs."""

from __future__ import annotations

import pytest
from device_clusters import GIB, cluster, devices, member, ready, starts, wanted

from xi_core.api.control import ReplicaConfig
from xi_core.cluster.devices import Device
from xi_core.cluster.placement import Placement, Rejection
from xi_core.cluster.replicas import Start
from xi_core.errors import NoPlacement


@pytest.mark.parametrize("count", [2, 4])
def test_as_many_replicas_as_devices_give_one_each(count: int) -> None:
    lives = starts(cluster(member("w1", count)).accept(0.0, wanted(n_gpu=1, replica=count)))
    assert sorted(devices(lives)) == [f"cuda:{n}" for n in range(count)]


def test_three_replicas_on_pools_of_two_and_one() -> None:
    lives = starts(cluster(member("w1", 4)).accept(0.0, wanted(n_gpu=1, replica=3, gpu_pool=2)))
    assert devices(lives) == ["cuda:0", "cuda:1", "cuda:0"]
    lives = starts(cluster(member("w1", 4)).accept(0.0, wanted(n_gpu=1, replica=3, gpu_pool=1)))
    assert devices(lives) == ["cuda:0"] * 3


def test_a_pool_counts_the_devices_that_a_sharded_replica_takes_of_all_its_workers() -> None:
    lives = starts(cluster(*(member(f"w{n}", 1) for n in range(4))).accept(0.0, wanted(n_gpu=1, n_worker=2, replica=2, gpu_pool=3)))
    assert [len(life.assignments) for life in lives] == [2, 2]
    assert len({(a.worker, name) for life in lives for a in life.assignments for name in a.devices}) <= 3


def test_three_on_two_devices_are_refused_where_each_takes_one_only() -> None:
    core = cluster(member("w1", 2))
    with pytest.raises(NoPlacement, match=r"replica 3 of 3 .*cuda:0: holds 1 replica.*cuda:1: holds 1 replica"):
        core.accept(0.0, wanted(n_gpu=1, replica=3, exclusive=True))
    assert core.listed() == []


def test_memory_is_promised_before_it_is_taken_and_given_back() -> None:
    core = cluster(member("w1", 1))
    (first,) = starts(core.accept(0.0, wanted(n_gpu=1, memory=50 * GIB)))
    with pytest.raises(NoPlacement, match=r"50\.0 GiB are needed, 30\.0 of 80\.0 GiB are free"):
        core.accept(0.0, wanted(n_gpu=1, memory=50 * GIB, uid="n"))
    ready(core, first)
    with pytest.raises(NoPlacement):
        core.accept(0.0, wanted(n_gpu=1, memory=50 * GIB, uid="n"))
    core.terminate(1.0, "m")
    core.replica_gone(1.0, first.incarnation)
    assert starts(core.accept(2.0, wanted(n_gpu=1, memory=50 * GIB, uid="n")))


def test_an_engine_that_takes_its_share_of_each_device() -> None:
    core = cluster(member("w1", 2))
    lives = starts(core.accept(0.0, wanted(n_gpu=1, share=0.9, replica=2)))
    assert devices(lives) == ["cuda:0", "cuda:1"]
    with pytest.raises(NoPlacement, match=r"72\.0 GiB are needed"):
        core.accept(0.0, wanted(n_gpu=1, share=0.9, uid="n"))


def test_memory_that_others_use_counts() -> None:
    core = cluster(member("w1", 2))
    core.worker_beat(
        0.0,
        "w1",
        [
            Device(id="cuda:0", kind="cuda", memory=80 * GIB, memory_free=10 * GIB),
            Device(id="cuda:1", kind="cuda", memory=80 * GIB, memory_free=70 * GIB),
        ],
    )
    assert devices(starts(core.accept(0.0, wanted(n_gpu=1, memory=40 * GIB)))) == ["cuda:1"]


def test_a_place_for_each_replica() -> None:
    configs = [ReplicaConfig(worker="w2", gpu_idx=[1]), ReplicaConfig(worker="host-w1")]
    core = cluster(member("w1", 2), member("w2", 2))
    lives = starts(core.accept(0.0, wanted(n_gpu=1, replica=2, replica_config=configs)))
    assert [(s.assignments[0].worker, s.assignments[0].devices) for s in lives] == [("w2", ("cuda:1",)), ("w1", ("cuda:0",))]


def test_spread_goes_across_workers_first() -> None:
    core = cluster(member("w1", 4), member("w2", 1), member("w3", 1))
    lives = starts(core.accept(0.0, wanted(n_gpu=1, replica=4, scheduler="spread")))
    assert [s.assignments[0].worker for s in lives] == ["w1", "w2", "w3", "w1"]


def test_devices_of_one_fast_domain_are_kept_together() -> None:
    one = member("w1", 4)
    for number, device in enumerate(one.devices):
        device.domain = "a" if number in (0, 3) else "b"
    one.devices[0].memory_free = 60 * GIB
    lives = starts(cluster(one).accept(0.0, wanted(n_gpu=2)))
    assert lives[0].assignments[0].devices == ("cuda:1", "cuda:2")


# ---- pools --------------------------------------------------------------------------------------


def test_what_is_lost_leaves_the_pool() -> None:
    """Else no other device is in it, and the launch ends though there is room."""
    core = cluster(member("w1", 1), member("w2", 1))
    lives = starts(core.accept(0.0, wanted(n_gpu=1, replica=2, gpu_pool=1)))
    ready(core, *lives)
    core.worker_left(1.0, "w1")
    moved: list[Start] = []
    while not moved and (now := core.next_wake()) is not None and now < 50.0:
        moved = starts(core.tick(now))
    assert {s.assignments[0].worker for s in moved} == {"w2"}
    assert devices(moved) == ["cuda:0"] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_drained_leaves_the_pool(count: int) -> None:
    core = cluster(member("w1", 1), member("w2", 1))
    ready(core, *starts(core.accept(0.0, wanted(n_gpu=1, replica=count, gpu_pool=1))))
    heirs = starts(core.drain(1.0, "w1", 60.0))
    assert [(s.assignments[0].worker, s.assignments[0].devices) for s in heirs] == [("w2", ("cuda:0",))] * count


# ---- explaining ---------------------------------------------------------------------------------


def test_a_dry_run_places_all_replicas_and_reserves_nothing() -> None:
    core = cluster(member("w1", 2))
    decisions = core.explain(wanted(n_gpu=1, replica=3, exclusive=True))
    assert [type(d) for d in decisions] == [Placement, Placement, Rejection]
    assert [(v.device, v.taken) for v in decisions[0].verdicts] == [("cuda:0", True), ("cuda:1", False)]
    assert "others rank before it" in decisions[0].verdicts[1].reason
    assert core.listed() == []
    assert devices(starts(core.accept(0.0, wanted(n_gpu=1, exclusive=True)))) == ["cuda:0"]
