"""Workers that are merely not ready: drained, away, stopped, or listed and not back yet. Refusals, dry runs and what waits name them."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.api.control import LaunchSpec, ReplicaConfig
from xi_core.cluster.devices import Device
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.members import Member, explain
from xi_core.cluster.placement import Placement, Rejection
from xi_core.errors import NoPlacement, WorkerNotFound
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.schedulers.idle_first import IdleFirst

GIB = 2**30


def wanted(n_gpu: int = 1, uid: str = "m", **fields: Any) -> Wanted:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    spec = LaunchSpec(model_name="toy", model_uid=uid, n_gpu=n_gpu, **fields)
    return Wanted(uid=uid, spec=spec, model=model, engine="e", n_gpu=n_gpu, created=1, main_memory=GIB)


def member(name: str, devices: int = 1) -> Member:
    found = [Device(id=f"cuda:{n}", kind="cuda", memory=8 * GIB, memory_free=8 * GIB) for n in range(devices)]
    return Member(name, "i1", found, ("e",), address=f"10.0.0.{name[1:]}", memory=8 * GIB)


def cluster(*members: Member, **more: Any) -> Lifecycle:
    core = Lifecycle(IdleFirst(), "e", launch_timeout=100.0, grace=5.0, **more)
    for one in members:
        core.worker_joined(0.0, one, [])
    return core


def refused(core: Lifecycle, what: Wanted) -> str:
    with pytest.raises(NoPlacement) as raised:
        core.accept(1.0, what)
    (*_, last) = core.explain(what)
    assert isinstance(last, Rejection)
    dry = explain(last)
    reasons = {verdict.reason for verdict in last.verdicts}
    assert last.reason in raised.value.message, f"a dry run says the same: {dry}"
    assert all(reason in raised.value.message for reason in reasons)
    assert core.listed() == []
    return raised.value.message


def drained(core: Lifecycle) -> str:
    core.drain(0.0, "w1", 60.0)
    return "drained"


def away(core: Lifecycle) -> str:
    core.worker_left(0.0, "w1")
    return "away"


def stopped(core: Lifecycle) -> str:
    core.worker_leaving("w1")
    core.worker_left(0.0, "w1")
    return "was stopped"


@pytest.mark.parametrize("happens", [drained, away, stopped])
@pytest.mark.parametrize("named", ["w1", "10.0.0.1"])
def test_a_worker_that_was_asked_for_is_told_to_be_unready(happens: Any, named: str) -> None:
    core = cluster(member("w1", 2), member("w2"))
    word = happens(core)
    said = refused(core, wanted(worker_ip=named))
    assert word in said
    assert "none of the workers asked for may take replicas now (w1: " in said
    (rejection,) = core.explain(wanted(worker_ip=named))
    assert [(v.worker, v.device) for v in rejection.verdicts] == [("w1", "cuda:0"), ("w1", "cuda:1")]
    assert "ask for fewer" not in said
    assert "w2" not in said, "nobody asked for it"


@pytest.mark.parametrize("happens", [drained, away, stopped])
def test_beside_workers_without_room_the_unready_ones_are_named(happens: Any) -> None:
    core = cluster(member("w1"), member("w2", 0))
    word = happens(core)
    said = refused(core, wanted())
    assert "no worker that is ready has 1 device(s) to give" in said
    assert "ask for fewer" not in said
    assert word in said
    assert "w2: has no devices, only CPU" in said


def test_where_all_are_drained_that_is_the_reason() -> None:
    core = cluster(member("w1"), member("w2"))
    core.drain(0.0, "w1", 60.0)
    core.drain(0.0, "w2", 60.0)
    said = refused(core, wanted(n_gpu=0))
    assert "w1" in said
    assert said.count("drained") == 2
    assert "xi drain w2 --undo" in said


def test_a_dry_run_that_finds_a_place_shows_the_devices_of_the_unready_too() -> None:
    core = cluster(member("w1", 2), member("w2"))
    core.drain(0.0, "w1", 60.0)
    (decision,) = core.explain(wanted())
    assert isinstance(decision, Placement)
    assert [(v.worker, v.device, v.taken) for v in decision.verdicts] == [
        ("w2", "cuda:0", True), ("w1", "cuda:0", False), ("w1", "cuda:1", False),
    ]  # fmt: skip
    assert all("drained" in v.reason for v in decision.verdicts[1:])


def test_what_waits_says_which_workers_are_not_ready() -> None:
    core = cluster(member("w1"), member("w2"))
    (start,) = core.accept(0.0, wanted())
    core.worker_left(1.0, "w2" if start.assignments[0].worker == "w1" else "w1")  # type: ignore[union-attr]
    here = start.assignments[0].worker  # type: ignore[union-attr]
    core.drain(1.0, here, 0.0)
    core.tick(1.0)
    core.replica_gone(2.0, start.incarnation)
    core.tick(60.0)
    launch = core.find("m")
    assert launch is not None
    (stage,) = {r.stage for r in launch.replicas if not r.live}
    assert stage.startswith("waiting: ")
    assert "drained" in stage
    assert "away" in stage


def test_a_listed_worker_that_has_not_come_back_is_away() -> None:
    core = cluster(member("w1", 0), expected=("w1", "w2"))
    for what in (wanted(), wanted(worker_ip="w2"), wanted(worker_ip="10.0.0.2")):
        said = refused(core, what)
        assert "w2: is away" in said
        assert "ask for fewer" not in said
    assert "w2" not in refused(core, wanted(worker_ip="w1")), "nobody asked for it"
    core.worker_joined(2.0, member("w2"), [])
    assert len(core.accept(2.0, wanted(worker_ip="10.0.0.2"))) == 1
    core.worker_removed(3.0, "w2")
    with pytest.raises(WorkerNotFound):
        core.accept(4.0, wanted(uid="n", worker_ip="w2"))


def test_one_that_is_removed_before_it_came_is_unknown() -> None:
    core = cluster(member("w1"), expected=("w2",))
    core.worker_removed(0.0, "w2")
    with pytest.raises(WorkerNotFound, match="there is no worker 'w2'; workers: w1 "):
        core.accept(1.0, wanted(worker_ip="w2"))


@pytest.mark.parametrize(
    ("fields", "param", "name"),
    [
        ({"worker_ip": "nowhere"}, "worker_ip", "nowhere"),
        ({"worker_ip": "w1, nowhere"}, "worker_ip", "nowhere"),
        ({"worker_ip": "10.0.0.9"}, "worker_ip", "10.0.0.9"),
        (
            {"replica_config": [ReplicaConfig(worker="w1"), ReplicaConfig(worker="w2,moon")], "replica": 2},
            "replica_config[1].worker",
            "moon",
        ),
    ],
)
def test_an_unknown_worker_is_refused_with_the_known(fields: dict[str, Any], param: str, name: str) -> None:
    core = cluster(member("w1"), member("w2"))
    core.worker_left(0.0, "w2")
    for ask in (lambda: core.accept(1.0, wanted(**fields)), lambda: core.explain(wanted(**fields))):
        with pytest.raises(WorkerNotFound, match=f"there is no worker '{name}'; workers: w1 .10.0.0.1., w2 .10.0.0.2.") as raised:
            ask()
        assert raised.value.param == param
        assert param in raised.value.message
    assert core.listed() == []


def test_a_name_cannot_be_the_address_of_one_that_has_not_come() -> None:
    core = cluster(member("w1"), expected=("w2",))
    with pytest.raises(WorkerNotFound, match=r"'nowhere'; workers: w1 \(10\.0\.0\.1\), w2"):
        core.accept(1.0, wanted(worker_ip="nowhere"))


@pytest.mark.parametrize("n_gpu", [0, 1])
def test_where_too_few_can_take_a_rank_none_ranks_before_another(n_gpu: int) -> None:
    core = cluster(member("w1"), member("w2", 0) if n_gpu else Member("w2", "i1", [], ("other",)))
    (decision,) = core.explain(wanted(n_gpu, n_worker=2))
    assert isinstance(decision, Rejection)
    verdict = decision.verdicts[0]
    assert (verdict.worker, verdict.taken) == ("w1", False)
    assert "before it" not in verdict.reason
    assert "it would do" in verdict.reason


def test_devices_as_placement_sees_them() -> None:
    core = cluster(member("w1", 2))
    what = wanted()
    core.accept(0.0, Wanted(**{f: getattr(what, f) for f in what.__struct_fields__} | {"memory": 3 * GIB}))
    core.drain(1.0, "w1", 60.0)
    view = core.view_of("w1")
    assert view is not None
    assert [(d.memory_free, d.replicas) for d in view.devices] == [(5 * GIB, 1), (8 * GIB, 0)]
    assert core.view_of("w9") is None
