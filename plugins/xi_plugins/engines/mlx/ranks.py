"""One rank of a model that is sharded over several workers. Used by engine.py and loading.py.

The ranks meet on MLX's ring, by TCP: https://ml-explore.github.io/mlx/build/html/usage/distributed.html. mlx-lm's own models know how they
are cut: across each layer (`shard`, tensor parallel), or between layers (`pipeline`). What rank 0 tells the others goes over a connection
of xi's own: a rank that waits on the ring keeps a CPU busy.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from xi_core.errors import EngineError, LaunchFailed, UnknownOption
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.mlx.plugin import PIPELINED, SHARDED

log = logging.getLogger(__name__)

LINK_PORT = 1
"""Index of the port for what rank 0 tells the others; the first is the ring's."""
_WIDTHS = ("num_key_value_heads", "num_attention_heads", "intermediate_size", "moe_intermediate_size")
"""What tensor parallelism cuts into as many parts as there are ranks."""


def check(plan: LaunchPlan, config: dict[str, Any], pipeline: bool) -> None:
    """Raises `UnknownOption` or `LaunchFailed` for a model that can't be cut into so many parts, and for workers that can't meet."""
    if plan.rendezvous is None:
        if pipeline:
            raise UnknownOption("pipeline cuts a model between workers, and this launch has one: n_worker 2 gives it two", param="pipeline")
        return
    for rank in plan.rendezvous.world:
        if ":" in rank.host:
            raise LaunchFailed(
                f"MLX's ring takes IPv4 addresses only, and worker {rank.worker} is at {rank.host}; start it with another: --host",
                param="n_worker",
            )
    count = len(plan.rendezvous.world)
    layers = config.get("num_hidden_layers")
    if pipeline and isinstance(layers, int) and layers < count:
        raise LaunchFailed(f"this model has {layers} layers, fewer than the {count} workers that are to share it", param="n_worker")
    for name in () if pipeline else _WIDTHS:
        width = config.get(name)
        if isinstance(width, int) and width % count:
            raise LaunchFailed(f"{name} of this model is {width}, which can't be shared by {count} workers evenly", param="n_worker")


def join(plan: LaunchPlan) -> Any:
    """Meet the other ranks: MLX's group of them. Raises `EngineError` when they don't come."""
    where = plan.rendezvous
    if where is None:
        raise EngineError("this replica has one rank only")
    hosts = [[f"{address.host}:{address.ports[0]}"] for address in where.world]
    own = where.own
    log.info("rank %d of %d: ring at %s, link %s, interface %s", own.rank, len(hosts), hosts[own.rank][0], where.link, own.interface)
    with tempfile.TemporaryDirectory(prefix="xi-mlx-") as folder:
        file = Path(folder) / "hosts.json"
        file.write_text(json.dumps(hosts), encoding="utf-8")
        os.environ.update(MLX_RANK=str(where.rank), MLX_HOSTFILE=str(file))
        try:
            group = mx.distributed.init(strict=True, backend="ring")
        except (RuntimeError, ValueError) as error:  # what mlx raises
            raise EngineError(f"the ranks did not meet on the ring of {', '.join(host for (host,) in hosts)}: {error}") from error
    if (group.rank(), group.size()) != (where.rank, len(hosts)):
        raise EngineError(f"mlx takes this rank for {group.rank()} of {group.size()}; it is {where.rank} of {len(hosts)}")
    return group


def cut(model: Any, group: Any, pipeline: bool, name: str) -> None:
    """Leave this rank's part of a model whose weights aren't read yet. Raises `LaunchFailed` for one that mlx-lm can't cut so."""
    inner: Any = getattr(model, "model", None)
    if pipeline:
        if not hasattr(inner, "pipeline"):
            raise LaunchFailed(f"mlx-lm can't cut this {name} model between its layers; it can: {', '.join(PIPELINED)}", param="n_worker")
        inner.pipeline(group)
    else:
        if not hasattr(model, "shard"):
            raise LaunchFailed(f"mlx-lm can't cut the layers of this {name} model; it can: {', '.join(SHARDED)}", param="n_worker")
        model.shard(group)
    size = sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))
    log.info("rank %d holds %.2f MB of the weights", group.rank(), size / 1e6)
