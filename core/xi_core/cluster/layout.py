"""Whether a launch's layout holds together: replicas, workers, devices, and the engine's own ideas of them. Called by `resolve`."""

from __future__ import annotations

from typing import Any

from xi_core.api.control import LaunchSpec
from xi_core.engine.info import EngineInfo, ShardRequest
from xi_core.errors import InvalidRequest, LaunchError, UnknownOption
from xi_core.models.family import ModelSpec


def check(spec: LaunchSpec, model: ModelSpec, engine: EngineInfo, n_gpu: int) -> None:
    """Raises `InvalidRequest` or `LaunchError`, naming the field and the numbers."""
    needed = n_gpu * spec.n_worker
    if spec.replica_config is not None and len(spec.replica_config) != spec.replica:
        raise InvalidRequest(
            f"replica_config describes {len(spec.replica_config)} replica(s), and replica is {spec.replica}; give one entry for each",
            param="replica_config",
        )
    if spec.gpu_pool is not None and n_gpu == 0:
        raise InvalidRequest("gpu_pool limits devices, but the replicas run on CPU (n_gpu none); leave one of them out", param="gpu_pool")
    if spec.gpu_pool is not None and spec.gpu_pool < needed:
        raise InvalidRequest(
            f"gpu_pool is {spec.gpu_pool}, and one replica alone takes {needed} device(s) ({spec.n_worker} worker(s) x {n_gpu})",
            param="gpu_pool",
        )
    if spec.gpu_idx is not None and len(spec.gpu_idx) < n_gpu:
        raise InvalidRequest(f"gpu_idx names {len(spec.gpu_idx)} device(s), and n_gpu asks for {n_gpu}", param="gpu_idx")
    if spec.n_worker > 1:
        _check_shard(spec, model, engine, n_gpu)


def _check_shard(spec: LaunchSpec, model: ModelSpec, engine: EngineInfo, n_gpu: int) -> None:
    if engine.shard is None:
        raise LaunchError(
            f"engine {engine.name} can't share a model over several workers (n_worker {spec.n_worker}); "
            f"for copies that share the requests use replica {spec.n_worker}",
            param="n_worker",
        )
    support = engine.shard(ShardRequest(model=model, options=spec.options, n_worker=spec.n_worker, n_gpu=n_gpu))
    if not support.ok:
        raise LaunchError(f"engine {engine.name} can't share {model.name} over {spec.n_worker} workers: {support.reason}", param="n_worker")


def memory_share(engine: EngineInfo, options: dict[str, Any]) -> float:
    """The part of each device's memory that the engine takes for this launch. Raises `UnknownOption` where its option is no such part."""
    given = options.get(engine.memory_share_option) if engine.memory_share_option else None
    if given is None:
        return engine.memory_share
    try:
        share = float(given)
    except (TypeError, ValueError):
        share = -1.0
    if not 0.0 < share <= 1.0:
        name = engine.memory_share_option
        raise UnknownOption(f"option '{name}' of engine {engine.name} is {given!r}; it is a part, above 0 and up to 1", param=name)
    return share
