"""`xi_plugins.routers.least_loaded`."""

from __future__ import annotations

from collections import Counter

import pytest

from xi_core.cluster.routing import ReplicaView, RouteRequest
from xi_core.importing import import_path
from xi_plugins import routers
from xi_plugins.routers import least_loaded
from xi_plugins.routers.least_loaded import LeastLoaded

REQUEST = RouteRequest(uid="m", route="/v1/chat/completions", size=100, max_tokens=None)


def view(name: str, tokens: int = 0, outstanding: int = 0) -> ReplicaView:
    return ReplicaView(replica_id=name, slots=4, outstanding=outstanding, tokens=tokens, running=0, waiting=0)


def test_fewest_tokens_then_fewest_requests() -> None:
    assert LeastLoaded().choose(REQUEST, [view("a", 10, 1), view("b", 5, 4)]) == "b"
    assert LeastLoaded().choose(REQUEST, [view("a", 5, 2), view("b", 5, 1)]) == "b"
    assert LeastLoaded().choose(REQUEST, [view("b"), view("a")]) == "a"


def test_equal_replicas_take_turns() -> None:
    router, replicas = LeastLoaded(), [view("a"), view("b"), view("c")]
    picks = [router.choose(REQUEST, replicas) for _ in range(30)]
    assert Counter(picks) == {"a": 10, "b": 10, "c": 10}
    assert picks[:3] == picks[3:6]


def test_a_newcomer_does_not_get_all() -> None:
    router = LeastLoaded()
    for _ in range(10):
        router.choose(REQUEST, [view("a"), view("b")])
    picks = Counter(router.choose(REQUEST, [view("a"), view("b"), view("c")]) for _ in range(9))
    assert picks == {"a": 3, "b": 3, "c": 3}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_loaded, "MAX_REMEMBERED", 5)
    router = LeastLoaded()
    for i in range(50):
        router.choose(REQUEST, [view(f"r{i}")])
    assert len(router._chosen) <= 5


def test_descriptor() -> None:
    (info,) = (info for info in routers.xi_routers() if info.name == "least_loaded")
    assert import_path(info.router) is LeastLoaded
