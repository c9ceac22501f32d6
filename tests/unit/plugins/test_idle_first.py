"""`xi_plugins.schedulers.idle_first`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xi_core.cluster.placement import ClusterView, DeviceView, Placement, PlacementRequest, Rejection, WorkerView
from xi_core.importing import import_path
from xi_core.plugins import PluginHub
from xi_plugins import schedulers
from xi_plugins.schedulers.idle_first import IdleFirst

GIB = 2**30


def device(worker: str, name: str, replicas: int = 0, free: int = 0, busy: float = 0.0) -> DeviceView:
    return DeviceView(worker=worker, device=name, kind="cuda", memory=80, memory_free=free, utilisation=busy, replicas=replicas)


def worker(name: str, *devices: DeviceView, replicas: int = 0, engines: tuple[str, ...] = ()) -> WorkerView:
    return WorkerView(worker=name, devices=devices, replicas=replicas, engines=engines)


def place(n_gpu: int, *workers: WorkerView, gpu_idx: tuple[int, ...] | None = None, main_memory: int = 0) -> Placement | Rejection:
    request = PlacementRequest(uid="m", engine="vllm", n_gpu=n_gpu, gpu_idx=gpu_idx, main_memory=main_memory)
    return IdleFirst().place(request, ClusterView(workers=workers))


def chosen(decision: Placement | Rejection) -> tuple[str, tuple[str, ...]]:
    assert isinstance(decision, Placement), decision
    (assignment,) = decision.assignments
    return assignment.worker, assignment.devices


def test_order_of_devices() -> None:
    fewest = worker("w", device("w", "cuda:0", replicas=1, free=80), device("w", "cuda:1", free=1))
    assert chosen(place(1, fewest)) == ("w", ("cuda:1",))
    freest = worker("w", device("w", "cuda:0", free=1), device("w", "cuda:1", free=2, busy=0.9))
    assert chosen(place(1, freest)) == ("w", ("cuda:1",))
    idlest = worker("w", device("w", "cuda:0", busy=0.5), device("w", "cuda:1", busy=0.1))
    assert chosen(place(1, idlest)) == ("w", ("cuda:1",))
    by_name = worker("w", device("w", "cuda:0"), device("w", "cuda:1"))
    assert chosen(place(1, by_name)) == ("w", ("cuda:0",))


def test_order_of_workers() -> None:
    busy = worker("a", device("a", "cuda:0", replicas=1))
    idle = worker("b", device("b", "cuda:0"))
    assert chosen(place(1, busy, idle)) == ("b", ("cuda:0",))
    assert chosen(place(0, worker("a", replicas=1), worker("b"))) == ("b", ())
    assert chosen(place(0, worker("b"), worker("a"))) == ("a", ())


def test_several_devices_are_of_one_worker() -> None:
    small = worker("a", device("a", "cuda:0"))
    large = worker("b", device("b", "cuda:0", replicas=2), device("b", "cuda:1"), device("b", "cuda:2", replicas=1))
    assert chosen(place(2, small, large)) == ("b", ("cuda:1", "cuda:2"))


def test_pool() -> None:
    both = worker("w", device("w", "cuda:0"), device("w", "cuda:1", replicas=3))
    assert chosen(place(1, both, gpu_idx=(1,))) == ("w", ("cuda:1",))
    refused = place(2, both, gpu_idx=(1,))
    assert isinstance(refused, Rejection)
    assert "no worker has 2 device(s)" in refused.reason
    assert next(verdict.reason for verdict in refused.verdicts) == "not in the pool 1"


def test_device_number_without_a_colon() -> None:
    assert chosen(place(1, worker("w", device("w", "gpuA"), device("w", "gpuB")), gpu_idx=(1,))) == ("w", ("gpuB",))


def test_workers_without_devices() -> None:
    cpu_only, gpu = worker("a"), worker("b", device("b", "cuda:0"))
    assert chosen(place(1, cpu_only, gpu)) == ("b", ("cuda:0",))
    assert chosen(place(0, cpu_only, gpu)) == ("a", ())
    refused = place(1, cpu_only)
    assert isinstance(refused, Rejection)
    assert refused.verdicts[0].reason == "has no devices, only CPU"


def test_engine_must_be_there() -> None:
    without, with_it = worker("a", device("a", "cuda:0"), engines=("mlx",)), worker("b", device("b", "cuda:0"), engines=("vllm",))
    assert chosen(place(1, without, with_it))[0] == "b"
    assert chosen(place(0, without, with_it))[0] == "b"
    for n_gpu in (0, 1):
        refused = place(n_gpu, without)
        assert isinstance(refused, Rejection)
        assert "no engine vllm" in refused.verdicts[0].reason


def test_main_memory_must_hold_the_weights_where_there_are_no_devices() -> None:
    small, large = WorkerView(worker="a", memory=4 * GIB), WorkerView(worker="b", memory=8 * GIB)
    assert chosen(place(0, small, large, main_memory=5 * GIB)) == ("b", ())
    assert chosen(place(0, WorkerView(worker="a"), main_memory=5 * GIB)) == ("a", ()), "nobody knows"
    assert chosen(place(1, worker("a", device("a", "cuda:0")), main_memory=5 * GIB)) == ("a", ("cuda:0",))
    refused = place(0, small, main_memory=5 * GIB)
    assert isinstance(refused, Rejection)
    assert refused.reason == "no worker has the engine vllm and room for the weights"
    assert refused.verdicts[0].reason == "the weights alone take 5.0 GiB, its main memory is 4.0 GiB"


def test_no_worker() -> None:
    refused = place(1)
    assert isinstance(refused, Rejection)
    assert "no worker" in refused.reason


DEVICES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), max_size=4)


@given(st.lists(DEVICES, max_size=4), st.integers(0, 3), st.none() | st.lists(st.integers(0, 3), max_size=3).map(tuple))
def test_every_decision_is_sound(shape: list[list[tuple[int, int, float]]], n_gpu: int, gpu_idx: tuple[int, ...] | None) -> None:
    workers = [
        worker(f"w{i}", *(device(f"w{i}", f"cuda:{j}", replicas, free, busy) for j, (replicas, free, busy) in enumerate(devices)))
        for i, devices in enumerate(shape)
    ]
    decision = place(n_gpu, *workers, gpu_idx=gpu_idx)
    candidates = {(w.worker, d.device) for w in workers for d in w.devices}
    possible = [w for w in workers if sum(gpu_idx is None or j in gpu_idx for j, _ in enumerate(w.devices)) >= n_gpu]
    assert isinstance(decision, Placement) == bool(possible)
    if workers and n_gpu:
        assert candidates <= {(verdict.worker, verdict.device) for verdict in decision.verdicts}
    taken = {(verdict.worker, verdict.device) for verdict in decision.verdicts if verdict.taken}
    if isinstance(decision, Placement):
        (given,) = decision.assignments
        assert len(set(given.devices)) == n_gpu
        assert taken == ({(given.worker, name) for name in given.devices} if n_gpu else {(given.worker, "")})
    else:
        assert not taken


def test_descriptor_and_alias() -> None:
    hub = PluginHub()
    hub.register(schedulers, "schedulers")
    assert import_path(hub.schedulers.get("IDLE_FIRST_LAUNCH_STRATEGY").scheduler) is IdleFirst
