"""Routing: the views that a router chooses a replica on. Runs in the gateway, on the token path: synchronous and cheap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct

PROMPT_COST = 1 / 32
"""What a byte of a prompt counts in expected tokens: four bytes are about a token, and reading a token takes about an eighth of the
time of writing one, as many are read at once. Machines differ; the order of magnitude counts."""
FINE_BLOCK, FINE_BLOCKS = 256, 32
COARSE_BLOCK, COARSE_BLOCKS = 2048, 60
"""Bytes and number of the blocks in `RouteRequest.prefix`: the first 8 KiB of a prompt in fine ones, the next 120 KiB in coarse ones."""


def prefix_bytes(blocks: int) -> int:
    """How many bytes the first so many blocks of a prompt are."""
    return FINE_BLOCK * min(blocks, FINE_BLOCKS) + COARSE_BLOCK * max(blocks - FINE_BLOCKS, 0)


class RouteRequest(Struct):
    """What a router may know of a request: the model's uid, the route, the body's size in bytes, and its most tokens if it says so.

    `tokens` is what the request is expected to cost, as `ReplicaView.tokens` counts it. `prefix` is a chain of hashes of the prompt's
    first blocks: two requests whose chains begin with the same n numbers have prompts that begin with the same n blocks of bytes. It is
    empty for a prompt shorter than a block, and for a router that doesn't ask for it.
    """

    uid: str
    route: str
    size: int
    max_tokens: int | None
    tokens: int = 0
    prefix: tuple[int, ...] = ()


class ReplicaView(Struct):
    """One ready replica. `outstanding` counts this gateway's open requests on it, `tokens` their expected tokens.

    `running` and `waiting` are what the replica last said of all gateways' requests.
    """

    replica_id: str
    slots: int
    outstanding: int
    tokens: int
    running: int
    waiting: int


class Router(ABC):
    """Chooses a replica for each request of one model."""

    wants_prefix: ClassVar[bool] = False
    """Whether requests are to come with `prefix`, which costs some microseconds each."""

    @abstractmethod
    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> str:
        """The `replica_id` of one of `replicas`, which is never empty."""

    def on_start(self, request: RouteRequest, replica_id: str) -> None:  # noqa: B027 - stateless routers need none
        """A request was sent to this replica."""

    def on_end(self, request: RouteRequest, replica_id: str, tokens: int) -> None:  # noqa: B027
        """That request has ended after so many tokens."""

    def on_gone(self, replica_id: str) -> None:  # noqa: B027
        """This replica, or this life of it, is no more: what it has cached is lost."""


class RouterInfo(Struct, kw_only=True):
    """Descriptor of a router: its name and `module:Class`."""

    name: str
    router: str
    aliases: tuple[str, ...] = ()
    description: str = ""
