"""Built-in schedulers: which devices a replica gets."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.cluster.placement import SchedulerInfo
from xi_core.hookspecs import hookimpl


@hookimpl
def xi_schedulers() -> Iterable[SchedulerInfo]:
    """The default scheduler, `idle_first`, and `spread`."""
    return [
        SchedulerInfo(
            name="idle_first",
            scheduler="xi_plugins.schedulers.idle_first:IdleFirst",
            aliases=("IDLE_FIRST_LAUNCH_STRATEGY",),
            description="The devices with the fewest replicas, then with the most free memory",
        ),
        SchedulerInfo(
            name="spread",
            scheduler="xi_plugins.schedulers.spread:Spread",
            description="The workers with the fewest replicas of the same launch, then the idlest devices",
        ),
    ]
