"""The machines of a cluster as the control API tells of them: workers with their devices, draining one, and what lies on their disks."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct


class DeviceStatus(Struct, kw_only=True):
    """One accelerator of a worker, as last reported."""

    id: str
    """Its name on that worker, such as `cuda:0`."""
    kind: str
    """What it is, such as `cuda`."""
    name: str = ""
    """Its maker's name."""
    memory: int = 0
    """Bytes."""
    memory_free: int = 0
    """Bytes that nothing uses now."""
    utilisation: float = 0.0
    """How busy it is, 0 to 1."""
    replicas: int = 0
    """How many replicas hold it."""


class WorkerStatus(Struct, kw_only=True):
    """One worker of the cluster: answer to `GET /v1/workers`."""

    name: str
    """As `worker_ip` of a launch takes it."""
    address: str
    """The host under which other machines reach it."""
    state: Literal["ready", "draining", "away"]
    """draining: it takes no replicas, and those that it has move elsewhere, or end where it was told to stop. away: it isn't connected."""
    version: str = ""
    """The version of xi there."""
    plugins: dict[str, str] = msgspec.field(default_factory=dict)
    """The plugins that it has loaded, each with its version."""
    cpus: int = 0
    """Processor cores; those of its container where that has fewer."""
    memory: int = 0
    """Bytes of main memory; those of its container where that has fewer."""
    devices: list[DeviceStatus] = msgspec.field(default_factory=list)
    """Its accelerators."""
    engines: list[str] = msgspec.field(default_factory=list)
    """Those that run there."""
    replicas: list[str] = msgspec.field(default_factory=list)
    """Ids of the replicas of which it runs a part, or the whole."""
    differences: list[str] = msgspec.field(default_factory=list)
    """In which it isn't like the supervisor's machine: versions of xi and of plugins."""


class DrainOrder(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/workers/{worker}/drain`."""

    seconds: Annotated[float, Meta(ge=0, le=7 * 24 * 3600)] = 600.0
    """Longest time for everything to move elsewhere."""
    undo: bool = False
    """Let the worker take replicas again instead."""


class DrainAnswer(Struct, kw_only=True):
    """Answer to it."""

    worker: str
    """The worker."""
    draining: bool
    """Whether it is being drained from now on; false after `undo`."""


class EnvironmentStatus(Struct, kw_only=True):
    """One environment of models on a worker: answer to `GET /v1/virtualenvs`."""

    worker: str
    """Where it is."""
    name: str
    """What it is deleted by."""
    packages: list[str]
    """As locked: `name==version`."""
    used: float
    """When it was last used, in seconds since 1970."""
    size: int
    """Bytes."""


class EnvironmentRemoval(Struct, kw_only=True):
    """Answer to `DELETE /v1/virtualenvs/{name}`."""

    name: str
    """The environment that is gone."""
    deleted: bool = True
    """Always true: what can't be deleted is an error."""


class CachedModelStatus(Struct, kw_only=True):
    """A downloaded model on a worker: part of the answer to `GET /v1/cache/models`."""

    worker: str
    """Where it is."""
    model_name: str
    """Its id at its source."""
    source: str
    """Where it came from, such as `huggingface`."""
    model_version: str
    """The commit, or what else the source pins its files by."""
    path: str
    """Its directory on that machine."""
    files: int
    """How many it has."""
    size: int
    """Bytes."""
    created: float
    """When it was complete, in seconds since 1970; 0 where it isn't."""
    complete: bool = True
    """False for what came in part, or is damaged; it is told only to who asks for it (`incomplete`)."""


class CachedModelList(Struct):
    """Answer to `GET /v1/cache/models`, in Xinference's form."""

    models: list[CachedModelStatus] = msgspec.field(name="list")
    """One entry for each worker that has a model."""


class CacheRemoval(Struct):
    """Answer to `DELETE /v1/cache/models`."""

    result: bool
    """Always true: what can't be deleted is an error."""
    freed: int
    """Bytes, on all workers."""
