"""Whom a supervisor asks for the log of a replica's life before the present one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from device_clusters import cluster, member, ready, starts, wanted

from xi_core.api.control import LogPart
from xi_core.cluster.executor import Executor
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.messages import FetchLog, ReadLog
from xi_core.cluster.operations import Operations
from xi_core.plugins import PluginHub


class AskedWorker:
    """A worker's link, which says who was asked for what."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def call(self, fetch: FetchLog) -> LogPart:
        return LogPart(replica_id=fetch.replica_id, worker=self.name, rank=fetch.rank, text="", start=0, next=0, previous=fetch.previous)


def asked(core: Lifecycle) -> Any:
    """The supervisor's answer to such commands."""
    workers = {name: SimpleNamespace(link=AskedWorker(name), register=None) for name in core.members}
    operations = Operations(PluginHub(), cast(Executor, SimpleNamespace(workers=workers)), core, lambda: None)
    return operations.calls()[ReadLog]


async def test_where_the_next_life_began_elsewhere_its_former_worker_is_asked() -> None:
    core = cluster(member("w1", 1), member("w2", 1))
    (first,) = starts(core.accept(0.0, wanted(n_gpu=1, exclusive=True)))
    ready(core, first)
    read = asked(core)
    core.replica_gone(1.0, first.incarnation, "boom")
    assert (await read(ReadLog(uid="m"))).worker == "w1", "its last life, while it has none"
    core.accept(1.1, wanted(n_gpu=1, exclusive=True, uid="other"))  # takes the device
    (second,) = starts(core.tick(core.next_wake() or 0.0))
    assert (first.assignments[0].worker, second.assignments[0].worker) == ("w1", "w2")
    now = await read(ReadLog(uid="m"))
    assert (now.worker, now.previous) == ("w2", False)
    before = await read(ReadLog(uid="m", previous=True))
    assert (before.worker, before.previous) == ("w1", True)


async def test_where_it_began_on_the_same_worker_that_one_is_asked_for_what_it_keeps() -> None:
    core = cluster(member("w1", 1))
    (first,) = starts(core.accept(0.0, wanted(n_gpu=1)))
    ready(core, first)
    core.replica_gone(1.0, first.incarnation, "boom")
    assert starts(core.tick(core.next_wake() or 0.0))
    before = await asked(core)(ReadLog(uid="m", previous=True))
    assert (before.worker, before.previous) == ("w1", True)
