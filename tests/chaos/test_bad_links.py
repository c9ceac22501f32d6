"""The link between a worker and its supervisor goes through a proxy that is slow, deaf or rude. Under load, which no request may feel."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from proxy import ChaosProxy
from town import Load, Town, eventually

from xi_core.cluster.addresses import split


@pytest.fixture
def link(town: Town) -> Iterator[ChaosProxy]:
    """Between worker w1 and the supervisor."""
    with ChaosProxy(*split(town.word["cluster_endpoint"])) as made:
        yield made


@pytest.fixture
def linked(town: Town, link: ChaosProxy) -> Town:
    """w1 behind the proxy, w2 not; a replica each. w1 joined without the proxy: the join port isn't behind it."""
    town.work("w1")
    town.processes["w1"].terminate()
    assert town.processes["w1"].wait(20.0) == 0
    eventually(lambda: "w1" not in town.pids("worker"), 10.0, "the worker to be gone")
    proxied = f"tcp://127.0.0.1:{link.port}"
    kept = town.folder / "w1" / "cluster" / "worker-w1.json"
    known = json.loads(kept.read_text())
    known["supervisors"][proxied] = known["supervisors"][town.word["cluster_endpoint"]]
    kept.write_text(json.dumps(known))
    town.work("w1", proxied)
    town.work("w2")
    town.launch(2)
    assert town.places() == ["w1", "w2"]
    assert link.connections
    return town


def misses(town: Town) -> int:
    """How often the supervisor has missed w1."""
    return town.said("head").count("worker w1 is away")


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_a_link_that_breaks_again_and_again_moves_nothing(linked: Town, link: ChaosProxy, how: str) -> None:
    before = linked.pids("replica")
    with Load(linked) as load:
        for _ in range(5):
            lives = link.connections
            getattr(link, how)()
            eventually(lambda: link.connections > lives, 10.0, "the worker to dial again")  # noqa: B023 - used at once
            linked.settled(["w1", "w2"])
            load.more(5)
    load.all_well()
    assert linked.pids("replica") == before
    assert "Traceback" not in linked.said("w1") + linked.said("head")


def test_a_slow_close_moves_nothing(linked: Town, link: ChaosProxy) -> None:
    """The supervisor learns of a broken link late, after the worker has dialled anew."""
    before = linked.pids("replica")
    link.linger = 2.0
    with Load(linked) as load:
        link.cut()
        eventually(lambda: link.connections > 1 and "w1" in linked.pids("worker"), 20.0, "the worker to be back")
        linked.settled(["w1", "w2"])
        load.more()
    load.all_well()
    assert linked.pids("replica") == before


def test_latency_and_jitter_do_not_make_it_flap(linked: Town, link: ChaosProxy) -> None:
    """300 ms each way and up to 150 more."""
    before, missed, lives = linked.pids("replica"), misses(linked), link.connections
    link.latency, link.jitter = 0.3, 0.15
    with Load(linked) as load:
        load.more(60)
        linked.http.put("/v1/models/xi-tiny/replicas", json={"replica": 4}).raise_for_status()
        linked.settled(["w1", "w1", "w2", "w2"])
        assert before.items() <= linked.pids("replica").items(), "those that were there are the same"
        linked.http.put("/v1/models/xi-tiny/replicas", json={"replica": 2}).raise_for_status()
        eventually(lambda: linked.usable() == len(linked.replicas()) == 2, 30.0, "two replicas")
        load.more(60)
    load.all_well()
    assert (misses(linked), link.connections) == (missed, lives), "the link stood all the time"


def test_a_short_blackhole_moves_nothing(linked: Town, link: ChaosProxy) -> None:
    before, missed = linked.pids("replica"), misses(linked)
    with Load(linked) as load:
        with link.blackhole():
            eventually(lambda: misses(linked) > missed, 10.0, "the supervisor to miss it")
        linked.settled(["w1", "w2"])
        load.more()
    load.all_well()
    assert linked.pids("replica") == before


@pytest.mark.parametrize("how", ["blackhole", "refusing"])
def test_a_long_silence_moves_the_replica_and_ends_with_one_copy(linked: Town, link: ChaosProxy, how: str) -> None:
    stale = linked.replicas("w1")
    with Load(linked) as load:
        with getattr(link, how)():
            eventually(lambda: linked.places() == ["w2", "w2"], 30.0, "the replica to be placed elsewhere")
            load.more()
            assert linked.replicas("w1") == stale
        eventually(lambda: set(linked.pids("worker")) == {"w1", "w2"}, 30.0, "the worker to be back")
        linked.settled(["w2", "w2"])
        load.more()
    load.all_well()
    assert not linked.replicas("w1")
