"""How a server shares a model over several workers: its parallel sizes, and the network that its ranks use.

Called by engines built on `ChildServerEngine`: `shared_by` in the supervisor, before anything is placed, the rest in the replica.
Pure, but for what `threads_in_quota` asks of the machine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from xi_core.engine.child_options import count, parallelism
from xi_core.engine.info import ShardRequest, Support
from xi_core.errors import UnknownOption
from xi_core.machine import cpus_by_quota
from xi_core.wire.plan import LaunchPlan, Rendezvous

log = logging.getLogger(__name__)

SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
"""The options whose product is the number of parts; the first takes what the other leaves."""


def total(n_worker: int, n_gpu: int) -> int:
    """Parts of the model: one for each device, and for each worker where it runs on CPUs."""
    return n_worker * max(1, n_gpu)


def devices_of(plan: LaunchPlan) -> int:
    """Devices that the whole replica has, on all workers; a CPU counts as one where it is sharded, and 0 means that it isn't."""
    if plan.rendezvous is None:
        return len(plan.devices)
    return sum(total(1, len(rank.devices)) for rank in plan.rendezvous.world)


def spread(engine: str, plan: LaunchPlan, names: Sequence[str]) -> dict[str, int]:
    """The sizes of a replica's parallelism, on all its workers: the options of `names`, of which the first is tensor parallelism.

    Rank 0's log warns where that leaves the workers, each of which has faster links than the network. Raises `UnknownOption`.
    """
    devices, rendezvous = devices_of(plan), plan.rendezvous
    sizes = parallelism(engine, plan.options, devices, names)
    if rendezvous is not None and rendezvous.rank == 0 and plan.devices and rendezvous.link == "ethernet":
        workers = len(rendezvous.world)
        if sizes[names[0]] > devices // workers:
            log.warning(
                "tensor parallelism over %d devices on %d workers crosses the network twice for each layer; "
                "if that is slow, launch it with --tensor-parallel-size %d --pipeline-parallel-size %d",
                sizes[names[0]], workers, devices // workers, workers,
            )  # fmt: skip
    return sizes


def shared_by(engine: str, request: ShardRequest) -> Support:
    """Whether the sizes that the launch names come to the devices that it asks for. Says the numbers, and what would be right."""
    try:
        given = {name: found for name in SIZES if (found := count(engine, request.options, name)) is not None}
    except UnknownOption as error:
        return Support(ok=False, reason=error.message)
    there = total(request.n_worker, request.n_gpu)
    rest = math.prod(given.get(name, 1) for name in SIZES[1:])
    sizes = {SIZES[0]: max(1, there // rest), **dict.fromkeys(SIZES[1:], 1), **given}
    wanted = math.prod(sizes.values())
    if wanted == there:
        return Support(ok=True)
    product = " × ".join(f"{name} {size}" for name, size in sizes.items())
    each = f"n_gpu {request.n_gpu}" if request.n_gpu else "a CPU each"
    return Support(
        ok=False, reason=f"{product} is {wanted}, and n_worker {request.n_worker} × {each} is {there}; {_right(request, there, wanted)}"
    )


def _right(request: ShardRequest, there: int, wanted: int) -> str:
    ways = [f"leave the sizes out for tensor parallelism over all {there}"]
    if request.n_gpu and wanted % request.n_worker == 0:
        ways.append(f"launch it with --n-gpu {wanted // request.n_worker}")
    elif wanted % max(1, request.n_gpu) == 0 and wanted > request.n_gpu:
        ways.append(f"launch it with --n-worker {wanted // max(1, request.n_gpu)}")
    return ", or ".join(ways)


def refused(options: Mapping[str, Any], reasons: Mapping[str, str]) -> Support | None:
    """Why an option can't be had together with several workers; None where no such is given. A size of 1, false and null say nothing."""
    for name, reason in reasons.items():
        value = options.get(name)
        if not (value is None or value is False or (name.endswith("_size") and str(value) == "1")):
            return Support(ok=False, reason=f"option {name} is {value!r}: {reason}")
    return None


def network(rendezvous: Rendezvous) -> dict[str, str]:
    """Variables that keep the ranks' connections on the interface by which the workers know each other. `lo` does for ranks of one machine.

    See PyTorch's "Common environment variables" (gloo) and NCCL's NCCL_SOCKET_IFNAME, where `=` asks for that very name.
    """
    name = rendezvous.own.interface
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"} if name else {}


def threads(rendezvous: Rendezvous, cpus: int) -> int:
    """CPU threads for each rank, so that those of one machine share its `cpus`."""
    here = sum(rank.host == rendezvous.own.host for rank in rendezvous.world)
    return max(1, cpus // here)


def threads_in_quota(plan: LaunchPlan) -> dict[str, str]:
    """`OMP_NUM_THREADS` on CPUs of which the container has only a share of their time, which OpenMP doesn't see; else nothing."""
    cpus = None if plan.devices else cpus_by_quota()
    if cpus is None:
        return {}
    if plan.rendezvous is not None:
        return {"OMP_NUM_THREADS": str(threads(plan.rendezvous, cpus))}
    parts = math.prod(int(plan.options.get(name) or 1) for name in SIZES)
    return {"OMP_NUM_THREADS": str(max(1, cpus // parts))}
