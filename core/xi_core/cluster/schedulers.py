"""The schedulers of plugins, made from what they tell of themselves. The supervisor calls it once."""

from __future__ import annotations

from xi_core.cluster.placement import Scheduler
from xi_core.errors import PluginError
from xi_core.importing import import_path
from xi_core.plugins import PluginHub


def schedulers_of(hub: PluginHub) -> dict[str, Scheduler]:
    """Every scheduler, by its name. Raises `PluginError` for one that is none."""
    found = {}
    for info in hub.schedulers:
        made = import_path(info.scheduler)()
        if not isinstance(made, Scheduler):
            raise PluginError(f"scheduler '{info.name}' is not a subclass of xi_core.cluster.placement.Scheduler")
        found[info.name] = made
    return found
