"""Every hook of xi. A plugin is a module or object with any of these functions, marked with `@hookimpl`.

An entry point of group `xi` names it:

    # pyproject.toml
    [project]
    dependencies = ["xi-inference>=0.1,<0.2"]

    [project.entry-points.xi]
    myengine = "xi_myengine.plugin"

Hooks are called at start-up of the supervisor, gateway, worker and CLI, so they return cheap descriptors and import nothing heavy; what a
descriptor names by `module:Class` is imported only where it is used. Names are unique over all plugins: a plugin that offers a name that is
taken is quarantined whole, and `xi plugins` shows why. All hooks are optional.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from xi_core.cluster.devices import DeviceProbeInfo
    from xi_core.cluster.placement import SchedulerInfo
    from xi_core.cluster.routing import RouterInfo
    from xi_core.engine.info import EngineInfo
    from xi_core.models.family import ModelFamily
    from xi_core.models.source import SourceInfo
    from xi_core.serving.parser import ParserInfo
    from xi_core.transport.base import TransportInfo

PROJECT = "xi"
"""Entry-point group and pluggy project name."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def xi_engines() -> Iterable[EngineInfo]:  # type: ignore[empty-body]
    """Engines: adapters over inference libraries. See `xi_core.engine.base` for what the named class implements."""


@hookspec
def xi_schedulers() -> Iterable[SchedulerInfo]:  # type: ignore[empty-body]
    """Schedulers: which devices a replica gets. Chosen by `XI_LAUNCH_STRATEGY`. See `xi_core.cluster.placement`."""


@hookspec
def xi_routers() -> Iterable[RouterInfo]:  # type: ignore[empty-body]
    """Routers: which replica a request goes to. Chosen by `XI_ROUTER`. See `xi_core.cluster.routing`."""


@hookspec
def xi_model_sources() -> Iterable[SourceInfo]:  # type: ignore[empty-body]
    """Sources: where weights come from. See `xi_core.models.source`."""


@hookspec
def xi_transports() -> Iterable[TransportInfo]:  # type: ignore[empty-body]
    """Transports: how messages travel between processes, by the scheme of an endpoint. See `xi_core.transport.base`."""


@hookspec
def xi_model_families() -> Iterable[ModelFamily]:  # type: ignore[empty-body]
    """Model families: names that can be launched, with their sizes and formats. See `xi_core.models.family`."""


@hookspec
def xi_parsers() -> Iterable[ParserInfo]:  # type: ignore[empty-body]
    """Parsers of model output: tool calls and reasoning. See `xi_core.serving.parser`."""


@hookspec
def xi_devices() -> Iterable[DeviceProbeInfo]:  # type: ignore[empty-body]
    """Device probes: which accelerators a worker has. See `xi_core.cluster.devices`."""
