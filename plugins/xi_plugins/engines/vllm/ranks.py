"""vLLM over several workers by its own multiprocessing, without Ray: what each rank's command line and environment add.

Rank 0 serves; the others run headless. See "Multi-node deployment" in vLLM's guide to parallelism and scaling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xi_core.engine.child_sharding import network, threads, threads_in_quota
from xi_core.machine import cpus
from xi_core.wire.plan import LaunchPlan, Rendezvous

HEADLESS = Path(__file__).with_name("headless.py")
_BOUND = "VLLM_CPU_OMP_THREADS_BIND"
"""Unless told otherwise, vLLM binds a thread to each processor of the process's set, however little of their time there is."""
JOINED = "headless multiproc executor"
"""In the line that a headless rank writes once it has taken its options."""


def follows(plan: LaunchPlan) -> bool:
    """Whether this is a rank above 0, which has no server."""
    return plan.rendezvous is not None and plan.rendezvous.rank > 0


def rank_options(plan: LaunchPlan) -> dict[str, Any]:
    """The options that make it one rank of several; none of a replica in one place. vLLM's ranks meet at the first port of rank 0."""
    rendezvous = plan.rendezvous
    if rendezvous is None:
        return {}
    head = rendezvous.head
    return {
        "nnodes": len(rendezvous.world),
        "node_rank": rendezvous.rank,
        "master_addr": head.host,
        "master_port": head.ports[0],
        **({"headless": True} if rendezvous.rank else {}),
    }


def rank_defaults(plan: LaunchPlan) -> dict[str, Any]:
    """Options where the launch doesn't say. On a CPU, compiling within tensor parallelism costs minutes; pipelines die without it."""
    on_cpu = plan.rendezvous is not None and not plan.devices
    return {"enforce_eager": True} if on_cpu and int(plan.options.get("pipeline_parallel_size") or 1) == 1 else {}


def rank_environment(plan: LaunchPlan) -> dict[str, str]:
    """Variables where neither the worker nor the launch sets them. Of a replica in one place, only those of a CPU in a container.

    Further ports of vLLM's own choice count on from the second that is kept; those of its queues and of gloo are the system's choice.
    """
    rendezvous = plan.rendezvous
    if rendezvous is None:
        share = threads_in_quota(plan)
        return {_BOUND: "nobind", **share} if share else {}
    own = rendezvous.own
    found = {"VLLM_HOST_IP": own.host, "VLLM_PORT": str(own.ports[1]), **network(rendezvous)}
    return found if plan.devices else {**found, **_on_cpu(rendezvous)}


def _on_cpu(rendezvous: Rendezvous) -> dict[str, str]:
    """Ranks of one machine know nothing of each other: bound to CPUs, all would take the same."""
    return {_BOUND: "nobind", "OMP_NUM_THREADS": str(threads(rendezvous, cpus()))}
