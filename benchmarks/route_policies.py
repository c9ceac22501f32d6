"""What chooses a replica in the simulation: xi's routers, and what they are compared with."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import msgspec

from benchmarks.replica_model import Arrival, Policy, SimulatedReplica
from xi_core.cluster.routing import Router, RouteRequest
from xi_plugins.routers.least_loaded import LeastLoaded
from xi_plugins.routers.prefix_affinity import PrefixAffinity


class ByRouter(Policy):
    """One of xi's routers, called as the dispatcher calls it."""

    def __init__(self, router: Router) -> None:
        self.router = router

    def choose(self, arrival: Arrival, request: RouteRequest, replicas: Sequence[SimulatedReplica]) -> int:
        seen = request if self.router.wants_prefix else msgspec.structs.replace(request, prefix=())
        chosen = self.router.choose(seen, [replica.view for replica in replicas])
        self.router.on_start(seen, chosen)
        return next(n for n, replica in enumerate(replicas) if replica.view.replica_id == chosen)

    def ended(self, request: RouteRequest, replica_id: str, tokens: int) -> None:
        self.router.on_end(request, replica_id, tokens)


class RoundRobin(Policy):
    """One after the other."""

    def __init__(self) -> None:
        self._turn = itertools.count()

    def choose(self, arrival: Arrival, request: RouteRequest, replicas: Sequence[SimulatedReplica]) -> int:
        return next(self._turn) % len(replicas)


class AtRandom(Policy):
    """Any."""

    def __init__(self) -> None:
        self._random = random.Random(1)

    def choose(self, arrival: Arrival, request: RouteRequest, replicas: Sequence[SimulatedReplica]) -> int:
        return self._random.randrange(len(replicas))


class PowerOfTwo(Policy):
    """Of two at random the one with fewer requests."""

    def __init__(self) -> None:
        self._random = random.Random(2)

    def choose(self, arrival: Arrival, request: RouteRequest, replicas: Sequence[SimulatedReplica]) -> int:
        return min(self._random.sample(range(len(replicas)), 2), key=lambda n: replicas[n].view.outstanding)


class Oracle(Policy):
    """Knows how long each answer will be, every cache and every queue: takes the replica on which this request ends first."""

    def choose(self, arrival: Arrival, request: RouteRequest, replicas: Sequence[SimulatedReplica]) -> int:
        return min(range(len(replicas)), key=lambda n: replicas[n].finish_of(arrival))


POLICIES: dict[str, Callable[[], Policy]] = {
    "round_robin": RoundRobin,
    "random": AtRandom,
    "power_of_two": PowerOfTwo,
    "least_loaded": lambda: ByRouter(LeastLoaded()),
    "prefix_affinity": lambda: ByRouter(PrefixAffinity()),
    "oracle": Oracle,
}
