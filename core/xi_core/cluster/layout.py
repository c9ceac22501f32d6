"""Whether a launch's layout holds together: replicas, workers, devices, and the engine's own ideas of them. Called by `resolve`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from xi_core.api.control import LaunchSpec, ReplicaConfig
from xi_core.engine.child_options import parallelism
from xi_core.engine.info import EngineInfo, ShardRequest
from xi_core.errors import InvalidRequest, LaunchError, UnknownOption
from xi_core.models.family import ModelSpec

SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Options of engines whose own parser knows them: their product is the devices of a replica on one worker."""


class _Part(Struct, frozen=True):
    """What one replica, or each of them, is to have of each of its workers, and the names of the fields that say so."""

    n_gpu: int
    gpu_idx: list[int] | None
    n_gpu_field: str = "n_gpu"
    gpu_idx_field: str = "gpu_idx"


def counts(spec: LaunchSpec, n_gpu: int) -> list[int]:
    """Devices of each rank, by the entries of `replica_config`; `n_gpu` is the launch's own. Who names devices wants one at least."""
    return [
        own.n_gpu if own.n_gpu is not None else max(1, n_gpu) if own.gpu_idx is not None and spec.n_gpu == "auto" else n_gpu
        for own in spec.replica_config or ()
    ]


def _parts(spec: LaunchSpec, n_gpu: int) -> list[_Part]:
    if spec.replica_config is None:
        return [_Part(n_gpu, spec.gpu_idx)]
    return [_part(spec, n, *found) for n, found in enumerate(zip(spec.replica_config, counts(spec, n_gpu), strict=True))]


def _part(spec: LaunchSpec, number: int, own: ReplicaConfig, n_gpu: int) -> _Part:
    place = f"replica_config[{number}]."
    n_gpu_field = f"{place}n_gpu" if own.n_gpu is not None else "n_gpu"
    if own.gpu_idx is not None:
        return _Part(n_gpu, own.gpu_idx, n_gpu_field, f"{place}gpu_idx")
    return _Part(n_gpu, spec.gpu_idx if n_gpu else None, n_gpu_field)


def check(spec: LaunchSpec, model: ModelSpec, engine: EngineInfo, n_gpu: int) -> None:
    """Raises `InvalidRequest` or `LaunchError`, naming the field and the numbers."""
    if spec.replica_config is not None and len(spec.replica_config) != spec.replica:
        raise InvalidRequest(
            f"replica_config describes {len(spec.replica_config)} replica(s), and replica is {spec.replica}; give one entry for each",
            param="replica_config",
        )
    parts = _parts(spec, n_gpu)
    if spec.gpu_pool is not None and not any(part.n_gpu for part in parts):
        raise InvalidRequest("gpu_pool limits devices, but the replicas run on CPU (n_gpu none); leave one of them out", param="gpu_pool")
    for part in parts:
        _check_part(spec, model, engine, part)


def _check_part(spec: LaunchSpec, model: ModelSpec, engine: EngineInfo, part: _Part) -> None:
    n_gpu, needed = part.n_gpu, part.n_gpu * spec.n_worker
    own = part.n_gpu_field != "n_gpu"
    if spec.gpu_pool is not None and spec.gpu_pool < needed:
        by = f" by {part.n_gpu_field}" if own else ""
        raise InvalidRequest(
            f"gpu_pool is {spec.gpu_pool}, and one replica alone takes {needed} device(s){by} ({spec.n_worker} worker(s) x {n_gpu})",
            param="gpu_pool",
        )
    names = part.gpu_idx_field
    if part.gpu_idx is not None and not n_gpu:
        raise InvalidRequest(f"{names} names devices, but {part.n_gpu_field} asks for none; leave one of them out", param=names)
    if part.gpu_idx is not None and len(part.gpu_idx) < n_gpu:
        raise InvalidRequest(
            f"{names} names {len(part.gpu_idx)} device(s), and {part.n_gpu_field} asks for {n_gpu}",
            param=part.n_gpu_field if own and names == "gpu_idx" else names,
        )
    try:
        _check_sizes(spec, model, engine, n_gpu)
    except LaunchError as error:
        if not own:
            raise
        raise type(error)(f"{part.n_gpu_field} is {n_gpu}: {error.message}", param=part.n_gpu_field) from None


def _check_sizes(spec: LaunchSpec, model: ModelSpec, engine: EngineInfo, n_gpu: int) -> None:
    if spec.n_worker > 1:
        _check_shard(spec, model, engine, n_gpu)
    elif n_gpu and engine.options is None and any(name in spec.options for name in SIZES):
        # With attention in data parallel (SGLang), the tensor parallel devices do both.
        parallelism(engine.name, spec.options, n_gpu, SIZES[:2] if spec.options.get("enable_dp_attention") else SIZES)


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
