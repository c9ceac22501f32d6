"""The routing table as the supervisor publishes it."""

from __future__ import annotations

from xi_core.cluster.messages import ModelRoute
from xi_core.cluster.table import RoutingTable


def route(uid: str, state: str = "READY") -> ModelRoute:
    return ModelRoute(uid=uid, state=state)


def test_table_publishes_what_changed() -> None:
    table = RoutingTable("e")
    assert (table.snapshot().version, table.snapshot().models) == (0, [])
    first = table.change({"a": route("a"), "b": route("b")})
    assert first is not None
    assert (first.version, first.full, [r.uid for r in first.models]) == (1, False, ["a", "b"])
    assert table.change({"a": route("a"), "x": None}) is None
    second = table.change({"a": None, "b": route("b", "FAILED"), "c": route("c")})
    assert second is not None
    assert (second.version, [r.uid for r in second.models], second.removed) == (2, ["b", "c"], ["a"])
    whole = table.snapshot()
    assert (whole.epoch, whole.version, whole.full, [r.uid for r in whole.models]) == ("e", 2, True, ["b", "c"])


def test_table_keeps_its_own_copy() -> None:
    table, mine = RoutingTable("e"), route("a", "LOADING")
    table.change({"a": mine})
    mine.state = "READY"
    assert table.change({"a": mine}) is not None
