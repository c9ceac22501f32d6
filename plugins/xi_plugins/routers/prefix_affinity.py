"""The `prefix_affinity` router. Called by the gateway for each request.

An engine keeps the keys and values of prompts that it has seen and computes only what is new of the next one. That helps where a
request goes to a replica that has seen its beginning. So this router remembers which blocks of prompts each replica was sent, and
chooses the replica with the longest beginning, as long as that isn't overloaded beside the others (consistent hashing with bounded
loads, Mirrokni, Thorup and Zadimoghaddam 2018, has the same bound).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from xi_core.cluster.routing import PROMPT_COST, ReplicaView, Router, RouteRequest, prefix_bytes

BLOCKS = 16_384
"""Blocks remembered per replica: 4 MiB of text in blocks of 256 bytes, about a million tokens."""
MOST_LOAD = 1.25
"""How many times the mean of outstanding tokens a replica may have, beside the slack, and still be chosen for its cache."""
SLACK = 2.0
"""Requests as large as the mean open one that a replica may have beyond that: with few requests open the mean says little."""


class Seen:
    """The blocks that one replica was sent last, at most `BLOCKS`. An approximation of its cache: engines evict in their own way."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def depth(self, chain: tuple[int, ...]) -> int:
        """How many blocks from the beginning of `chain` are there.

        A block is never older than those that follow it, so it outlives them, and what is there is a beginning: bisect.
        """
        blocks = self._blocks
        low, high = 0, len(chain)
        while low < high:
            middle = (low + high) // 2
            if chain[middle] in blocks:
                low = middle + 1
            else:
                high = middle
        return low

    def add(self, chain: tuple[int, ...]) -> None:
        """The replica was sent these; the first ones become the youngest."""
        blocks = self._blocks
        for block in reversed(chain):
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > BLOCKS:
            blocks.popitem(last=False)

    def __len__(self) -> int:
        return len(self._blocks)


class PrefixAffinity(Router):
    """The replica that has seen most of the prompt's beginning and isn't overloaded; of equal ones the one with the least load."""

    wants_prefix: ClassVar[bool] = True

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self._turn = 0
        self._chosen: dict[str, int] = {}

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> str:
        least = min(replicas, key=self._load)
        most = _most_tokens(request, replicas)
        best, rank = least, (-self._depth(request, least), *self._load(least))
        for view in replicas:
            depth = self._depth(request, view)
            if (-depth, *self._load(view)) < rank and view.tokens <= most and _worth_waiting(view, least, depth):
                best, rank = view, (-depth, *self._load(view))
        self._turn += 1
        self._chosen[best.replica_id] = self._turn
        return best.replica_id

    def on_start(self, request: RouteRequest, replica_id: str) -> None:
        if request.prefix:
            self._seen.setdefault(replica_id, Seen()).add(request.prefix)

    def on_gone(self, replica_id: str) -> None:
        self._seen.pop(replica_id, None)
        self._chosen.pop(replica_id, None)

    def _depth(self, request: RouteRequest, view: ReplicaView) -> int:
        seen = self._seen.get(view.replica_id)
        return seen.depth(request.prefix) if seen is not None else 0

    def _load(self, view: ReplicaView) -> tuple[int, int, int, str]:
        return view.tokens, view.outstanding, self._chosen.get(view.replica_id, 0), view.replica_id


def _worth_waiting(view: ReplicaView, least: ReplicaView, depth: int) -> bool:
    """Whether `depth` cached blocks save more than a replica's other requests cost, where another has a free slot.

    A replica works off its tokens in all its slots at once, so a saved token is worth as many outstanding ones as there are slots.
    Where no slot is free, each token saved anywhere shortens all queues, and the bound of the load alone decides.
    """
    if least.outstanding >= least.slots:
        return True
    return view.tokens - least.tokens <= view.slots * PROMPT_COST * prefix_bytes(depth)


def _most_tokens(request: RouteRequest, replicas: Sequence[ReplicaView]) -> float:
    """The outstanding tokens with which a replica counts as overloaded."""
    tokens = sum(view.tokens for view in replicas)
    requests = sum(view.outstanding for view in replicas)
    typical = (tokens + request.tokens) / (requests + 1)
    return MOST_LOAD * tokens / len(replicas) + SLACK * typical
