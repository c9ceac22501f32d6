"""A model of replicas behind a gateway: slots, a queue in the order of arrival, an LRU cache of prefixes. No clock, no processes.

A request takes the first free slot of its replica, reads what of its prompt the cache doesn't hold, and writes its answer. As a replica
begins requests in the order in which they come, all of it is known when a request is sent: when it starts, what it finds in the cache,
when it ends. So the only events are arrivals and ends.
"""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xi_core.cluster.routing import COARSE_BLOCK, COARSE_BLOCKS, FINE_BLOCK, FINE_BLOCKS, ReplicaView, RouteRequest
from xi_server.expected import Expected

BLOCK = 64
"""Tokens per block of the cache: 256 bytes at four bytes per token, as in the chain that the gateway makes."""
READS = 4000.0
WRITES = 50.0
"""Tokens per second that a slot of a replica of speed 1 reads and writes."""
CACHE = 1024
"""Blocks that a replica's cache holds: 65,536 tokens."""
ROUTE = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What comes, and what it comes to."""

    speeds: tuple[float, ...]
    load: float
    """Arrivals as a share of what the replicas can do without any cache hit."""
    slots: int = 4
    groups: int = 0
    """Prefixes that requests share; the n-th is used 1/n times as often as the first. 0: nothing is shared."""
    shared_blocks: int = 0
    own_blocks: tuple[int, int] = (2, 16)
    """Least and most blocks of a prompt that no other has."""
    answer: float = 128.0
    """Mean tokens of an answer; their lengths are distributed exponentially."""

    @property
    def rate(self) -> float:
        """Arrivals per second."""
        prompt = BLOCK * (self.shared_blocks + sum(self.own_blocks) / 2)
        return self.load * self.slots * sum(self.speeds) / (prompt / READS + self.answer / WRITES)


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, its prompt as a chain of blocks, its answer's length."""

    at: float
    chain: tuple[int, ...]
    tokens: int
    max_tokens: int | None


def arrivals(workload: Workload, seed: int, count: int) -> list[Arrival]:
    """So many requests. Half name a `max_tokens`, as clients do: far more than is used."""
    draw = random.Random(seed)
    popularity = [1 / (n + 1) for n in range(workload.groups)]
    at, own, made = 0.0, 1 << 40, []
    for _ in range(count):
        at += draw.expovariate(workload.rate)
        chain: tuple[int, ...] = ()
        if workload.groups:
            (group,) = draw.choices(range(workload.groups), popularity)
            chain = tuple(range(group << 20, (group << 20) + workload.shared_blocks))
        more = draw.randint(*workload.own_blocks)
        chain += tuple(range(own, own + more))
        own += more
        tokens = min(max(1, round(draw.expovariate(1 / workload.answer))), 1024)
        made.append(Arrival(at, chain, tokens, draw.choice((None, 1024))))
    return made


class SimulatedReplica:
    """One replica and what the gateway knows of it (`view`)."""

    def __init__(self, name: str, speed: float, slots: int) -> None:
        self.view = ReplicaView(replica_id=name, slots=slots, outstanding=0, tokens=0, running=0, waiting=0)
        self._speed = speed
        self._free_at = [0.0] * slots
        self._cache: OrderedDict[int, None] = OrderedDict()

    def cached(self, chain: tuple[int, ...]) -> int:
        """How many blocks of a prompt would be found. One at least is always computed: an answer begins from its result."""
        found = 0
        for block in chain[:-1]:
            if block not in self._cache:
                break
            found += 1
        return found

    def finish_of(self, arrival: Arrival) -> float:
        """When a request would be answered, were it sent here now."""
        reads = BLOCK * (len(arrival.chain) - self.cached(arrival.chain)) / READS
        return max(arrival.at, self._free_at[0]) + (reads + arrival.tokens / WRITES) / self._speed

    def take(self, arrival: Arrival) -> float:
        """A request is sent here. When it will be answered."""
        end = self.finish_of(arrival)
        heapq.heapreplace(self._free_at, end)
        for block in reversed(arrival.chain):
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > CACHE:
            self._cache.popitem(last=False)
        return end


class Policy(ABC):
    """Chooses replicas in the simulation."""

    @abstractmethod
    def choose(self, arrival: Arrival, request: RouteRequest, replicas: Sequence[SimulatedReplica]) -> int:
        """The number of a replica. `arrival` holds what no router can know; only the oracle looks at it."""

    def ended(self, request: RouteRequest, replica_id: str, tokens: int) -> None:  # noqa: B027 - most learn nothing
        """A request has been answered."""


@dataclass
class Report:
    """What came of a simulation."""

    latencies: list[float] = field(default_factory=list)
    """Seconds from arrival to the end of the answer, sorted."""
    end: float = 0.0
    blocks: int = 0
    found: int = 0

    def latency(self, share: float) -> float:
        """The latency that this share of requests doesn't exceed."""
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]

    @property
    def rate(self) -> float:
        """Requests answered per second."""
        return len(self.latencies) / self.end

    @property
    def hit_rate(self) -> float:
        """Share of all prompts' blocks that were found in a cache."""
        return self.found / self.blocks


def simulate(workload: Workload, make: Callable[[], Policy], seed: int, count: int) -> Report:
    """Send `count` requests the way of a policy."""
    policy, expected, report = make(), Expected(), Report()
    replicas = [SimulatedReplica(f"m-{n}", speed, workload.slots) for n, speed in enumerate(workload.speeds)]
    open_: list[tuple[float, int, int, RouteRequest, Arrival]] = []
    for number, arrival in enumerate(arrivals(workload, seed, count)):
        while open_ and open_[0][0] <= arrival.at:
            _, _, which, request, answered = heapq.heappop(open_)
            _end(policy, expected, replicas[which].view, request, answered)
        request = _request(expected, arrival)
        which = policy.choose(arrival, request, replicas)
        replica = replicas[which]
        report.blocks += len(arrival.chain)
        report.found += replica.cached(arrival.chain)
        end = replica.take(arrival)
        replica.view.outstanding += 1
        replica.view.tokens += request.tokens
        heapq.heappush(open_, (end, number, which, request, arrival))
        report.latencies.append(end - arrival.at)
        report.end = max(report.end, end)
    report.latencies.sort()
    return report


def _request(expected: Expected, arrival: Arrival) -> RouteRequest:
    """What the gateway would tell a router."""
    size = len(arrival.chain) * FINE_BLOCK
    step = COARSE_BLOCK // FINE_BLOCK
    prefix = arrival.chain[:FINE_BLOCKS] + arrival.chain[FINE_BLOCKS + step - 1 :: step][:COARSE_BLOCKS]
    return RouteRequest("m", ROUTE, size, arrival.max_tokens, expected.tokens(ROUTE, size, arrival.max_tokens), prefix)


def _end(policy: Policy, expected: Expected, view: ReplicaView, request: RouteRequest, arrival: Arrival) -> None:
    view.outstanding -= 1
    view.tokens -= request.tokens
    expected.learn(ROUTE, arrival.max_tokens, arrival.tokens)
    policy.ended(request, view.replica_id, arrival.tokens)
