"""Names with numbers in them, in the order in which people count."""

from __future__ import annotations

from xi_core.cluster.placement import ClusterView, DeviceView, Placement, PlacementRequest, WorkerView
from xi_core.natural import natural
from xi_plugins.schedulers.idle_first import IdleFirst
from xi_plugins.schedulers.spread import Spread


def test_numbers_count() -> None:
    names = ["w10", "cuda:10", "7", "cuda:2", "w2", "", "fake-cuda:1", "cuda:02", "w2a", "cuda"]
    assert sorted(names, key=natural) == ["", "7", "cuda", "cuda:2", "cuda:02", "cuda:10", "fake-cuda:1", "w2", "w2a", "w10"]


def test_of_devices_that_are_alike_the_first_are_taken() -> None:
    devices = tuple(DeviceView(worker="w", device=f"cuda:{n}", kind="cuda", memory=8, memory_free=8) for n in range(12))
    view = ClusterView(workers=(WorkerView(worker="w", devices=devices),))
    for scheduler in (IdleFirst(), Spread()):
        decision = scheduler.place(PlacementRequest(uid="m", engine="e", n_gpu=4), view)
        assert isinstance(decision, Placement)
        assert decision.assignments[0].devices == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
