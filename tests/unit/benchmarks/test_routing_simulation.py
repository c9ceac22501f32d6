"""The simulation of routers: its replicas by hand, and the claims of `benchmarks/results/routing.json` at a small size."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.replica_model")


@pytest.fixture
def routing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.routing")


def test_a_replica_queues_in_order_and_reads_only_what_is_new(model: Any) -> None:
    replica = model.SimulatedReplica("m-0", speed=0.5, slots=1)
    first = model.Arrival(at=0.0, chain=tuple(range(25)), tokens=50, max_tokens=None)
    assert replica.take(first) == pytest.approx(2 * (25 * 64 / 4000 + 1.0))
    again = model.Arrival(at=1.0, chain=(*range(20), 99), tokens=25, max_tokens=None)
    assert replica.cached(again.chain) == 20
    assert replica.finish_of(again) == pytest.approx(2.8 + 2 * (64 / 4000 + 0.5))
    assert replica.cached(first.chain) == 24, "the last block is always read"


def test_the_cache_forgets_the_oldest(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "CACHE", 4)
    replica = model.SimulatedReplica("m-0", speed=1.0, slots=1)
    for chain in ((1, 2, 3), (7, 8, 9)):
        replica.take(model.Arrival(at=0.0, chain=chain, tokens=1, max_tokens=None))
    assert [replica.cached(chain) for chain in ((7, 8, 9, 0), (1, 2, 3))] == [3, 1]


def test_the_same_seed_gives_the_same_figures(model: Any, routing: Any) -> None:
    policies = importlib.import_module("benchmarks.route_policies").POLICIES
    for make in policies.values():
        one, two = (model.simulate(routing.SHARED, make, 3, 200) for _ in range(2))
        assert one == two


def test_the_claims_hold(routing: Any) -> None:
    study = routing.Study(seeds=3, requests=1200)
    missed = [f"{row.what}: {row.value:.3f}, target {row.target}" for row in study.rows() if not row.met]
    assert not missed


def test_replicas_that_are_nearly_alike_are_shown_without_a_target(routing: Any) -> None:
    rows = {row.what: row for row in routing.Study(seeds=3, requests=1200).rows() if not row.target}
    ours, best = (rows[f"{policy}: p99 latency, speeds 1, 1, 0.8, 0.6"] for policy in ("least_loaded", "oracle"))
    assert ours.peer == best.peer == "round_robin"
    assert best.value < ours.value < 1, "even the oracle gains little"
