"""`xi_plugins.routers.prefix_affinity`."""

from __future__ import annotations

from collections import Counter

import pytest

from xi_core.cluster.routing import ReplicaView, RouteRequest
from xi_core.importing import import_path
from xi_plugins import routers
from xi_plugins.routers import prefix_affinity
from xi_plugins.routers.prefix_affinity import PrefixAffinity, Seen


def asking(*prefix: int, tokens: int = 100) -> RouteRequest:
    return RouteRequest(uid="m", route="/v1/chat/completions", size=1000, max_tokens=None, tokens=tokens, prefix=prefix)


def view(name: str, tokens: int = 0, outstanding: int = 0, slots: int = 4) -> ReplicaView:
    return ReplicaView(replica_id=name, slots=slots, outstanding=outstanding, tokens=tokens, running=0, waiting=0)


def sent(router: PrefixAffinity, request: RouteRequest, replicas: list[ReplicaView]) -> str:
    chosen = router.choose(request, replicas)
    router.on_start(request, chosen)
    return chosen


def test_a_shared_beginning_goes_where_it_went() -> None:
    router, replicas = PrefixAffinity(), [view("a"), view("b"), view("c")]
    first = {n: sent(router, asking(n, 10 * n), replicas) for n in (1, 2, 3)}
    assert sorted(first.values()) == ["a", "b", "c"]
    for n in (3, 1, 2, 2, 1, 3):
        assert sent(router, asking(n, 10 * n, 77), replicas) == first[n]


def test_the_longest_beginning_wins_and_equal_ones_go_by_load() -> None:
    router = PrefixAffinity()
    router.on_start(asking(1, 2), "a")
    router.on_start(asking(1, 2, 3), "b")
    assert router.choose(asking(1, 2, 3, 4), [view("a"), view("b")]) == "b"
    assert router.choose(asking(1, 2, 9), [view("a", 50, 1), view("b", 20, 1)]) == "b"
    assert router.choose(asking(1, 2, 9), [view("a", 10, 1), view("b", 20, 1)]) == "a"


def test_without_a_known_beginning_it_is_the_least_loaded() -> None:
    router = PrefixAffinity()
    assert router.choose(asking(), [view("a", 10, 1), view("b", 5, 1)]) == "b"
    picks = Counter(sent(router, asking(n), [view("a"), view("b"), view("c")]) for n in range(30))
    assert picks == {"a": 10, "b": 10, "c": 10}


def test_an_overloaded_replica_is_passed_over_and_the_next_longest_taken() -> None:
    router, chain = PrefixAffinity(), tuple(range(40))
    router.on_start(asking(*chain), "a")
    router.on_start(asking(*chain[:35]), "b")
    busy = [view("a", 1000, 10), view("b", 1000, 10), view("c", 900, 9)]
    assert router.choose(asking(*chain), busy) == "a"
    busy[0] = view("a", 1900, 19)  # the mean is about 1,300
    assert router.choose(asking(*chain), busy) == "b"
    busy[:2] = view("a", 5000, 50), view("b", 5000, 50)
    assert router.choose(asking(*chain), busy) == "c"


def test_a_small_saving_does_not_keep_a_request_from_a_free_replica() -> None:
    router = PrefixAffinity()
    router.on_start(asking(1), "a")
    assert router.choose(asking(1, 2), [view("a", 30, 1), view("b")]) == "a"
    assert router.choose(asking(1, 2), [view("a", 300, 3), view("b")]) == "b"


def test_what_one_replica_alone_can_do_is_asked_of_it() -> None:
    router = PrefixAffinity()
    assert router.choose(asking(1), [view("a", 10**6, 500)]) == "a"


def test_a_replica_that_is_gone_is_forgotten() -> None:
    router, replicas = PrefixAffinity(), [view("a", 5, 1), view("b")]
    router.on_start(asking(1, 2), "a")
    assert router.choose(asking(1, 2), replicas) == "a"
    router.on_gone("a")
    assert router.choose(asking(1, 2), replicas) == "b"


def test_memory_is_bounded_and_beginnings_outlive_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_affinity, "BLOCKS", 6)
    seen = Seen()
    seen.add((1, 2, 3, 4))
    seen.add((1, 12, 13, 14, 15))
    assert len(seen) == 6
    assert seen.depth((1, 12, 13, 14, 15, 16)) == 5
    assert seen.depth((1, 2, 3, 4)) == 2
    assert seen.depth((8, 9)) == 0


def test_descriptor() -> None:
    (info,) = (info for info in routers.xi_routers() if info.name == "prefix_affinity")
    router = import_path(info.router)
    assert router is PrefixAffinity
    assert router.wants_prefix
