"""Built-in routers: which replica a request goes to."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.cluster.routing import RouterInfo
from xi_core.hookspecs import hookimpl


@hookimpl
def xi_routers() -> Iterable[RouterInfo]:
    """The default router, `least_loaded`, and `prefix_affinity`."""
    return [
        RouterInfo(
            name="least_loaded",
            router="xi_plugins.routers.least_loaded:LeastLoaded",
            description="The replica with the fewest outstanding tokens; equal ones in turn",
        ),
        RouterInfo(
            name="prefix_affinity",
            router="xi_plugins.routers.prefix_affinity:PrefixAffinity",
            description="The replica that has seen most of the prompt's beginning, unless it is overloaded beside the others",
        ),
    ]
