"""Rendezvous: how the ranks of one replica are started on their workers, all of them or none. Part of the supervisor.

First every worker prepares its rank: artifact on disk, ports kept free. Only when all have answered is any process started, and each is
told the addresses of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from xi_core.cluster.matching import WorkerLink
from xi_core.cluster.messages import Prepare, Prepared, StartReplica
from xi_core.cluster.placement import Assignment
from xi_core.errors import Unavailable, XiError
from xi_core.wire.plan import RankAddress, Rendezvous


class RankError(Exception):
    """A rank could not be prepared or started."""

    def __init__(self, rank: int, reason: XiError) -> None:
        super().__init__(f"rank {rank}: {reason.message}")
        self.rank = rank
        self.reason = reason


async def prepare(
    workers: Mapping[str, WorkerLink], assignments: Sequence[Assignment], commands: Sequence[StartReplica]
) -> list[StartReplica]:
    """The commands with the rendezvous of all ranks, once every worker has prepared its own. Raises `RankError`."""
    prepares = [
        Prepare(
            spec=c.spec, model=c.model, plan=c.plan, created=c.created, rank=rank, deadline=c.deadline, restarts=c.restarts, moves=c.moves
        )
        for rank, c in enumerate(commands)
    ]
    # No deadline here: the launch has one, which downloads that go on renew. When it is over the ranks are stopped, and that is an answer.
    asked = [asyncio.ensure_future(ask(workers, a, p, p.rank, None)) for a, p in zip(assignments, prepares, strict=True)]
    try:
        answers: list[Prepared] = await asyncio.gather(*asked)
    finally:
        for task in asked:
            task.cancel()
    world = tuple(answer.address for answer in answers)
    return [_with(command, Rendezvous(rank=rank, world=world, link=_link(world))) for rank, command in enumerate(commands)]


async def ask(
    workers: Mapping[str, WorkerLink], assignment: Assignment, command: Prepare | StartReplica, rank: int, timeout: float | None = 30.0
) -> Any:
    """A worker's answer for its rank, within `timeout` seconds; None: for as long as it is linked. Raises `RankError`."""
    worker = workers.get(assignment.worker)
    if worker is None:
        raise RankError(rank, Unavailable(f"worker {assignment.worker} is away"))
    try:
        return await worker.link.call(command, timeout=timeout)
    except XiError as error:
        raise RankError(rank, error) from error


def _with(command: StartReplica, rendezvous: Rendezvous) -> StartReplica:
    return msgspec.structs.replace(command, plan=msgspec.structs.replace(command.plan, rendezvous=rendezvous))


def _link(world: Sequence[RankAddress]) -> str:
    """What joins the machines, as far as their interfaces' names tell."""
    if len({address.host for address in world}) == 1:
        return "loopback"
    names = {address.interface for address in world}
    if "" in names:
        return ""
    return "infiniband" if all(name.startswith(("ib", "mlx")) for name in names) else "ethernet"
