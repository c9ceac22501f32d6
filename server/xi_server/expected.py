"""What a request is expected to cost, in tokens, before it has begun. One `Expected` per model; the dispatcher asks and teaches it.

`max_tokens` is a limit, and clients ask for much more than they use. How much of it answers really use is learned from those that have
ended; so is the length of answers to requests that name no limit.
"""

from __future__ import annotations

from xi_core.cluster.routing import PROMPT_COST
from xi_server.route import DEFAULT_TOKENS

FORGET = 0.98
"""What is left of an answer's weight after the next one: about the last fifty count."""
PRIOR = 4 * DEFAULT_TOKENS
"""Tokens of answers that are supposed, before any has ended, to have used all that they were allowed."""


class Expected:
    """What is known of one model's answers, by route: embeddings have none, chats and completions differ."""

    def __init__(self) -> None:
        self._limited: dict[str, _Share] = {}
        self._free: dict[str, _Share] = {}

    def tokens(self, route: str, size: int, max_tokens: int | None) -> int:
        """The expected cost of a request whose body has `size` bytes; at least 1."""
        return max(1, round(PROMPT_COST * size + self._share(route, max_tokens).value * (max_tokens or DEFAULT_TOKENS)))

    def learn(self, route: str, max_tokens: int | None, tokens: int) -> None:
        """A request has ended by itself after so many tokens."""
        self._share(route, max_tokens).add(tokens, max_tokens or DEFAULT_TOKENS)

    def _share(self, route: str, max_tokens: int | None) -> _Share:
        known = self._free if max_tokens is None else self._limited
        share = known.get(route)
        if share is None:
            share = known[route] = _Share()
        return share


class _Share:
    """Used over allowed tokens, recent answers first. A ratio of sums, so that long answers count for more than short ones."""

    __slots__ = ("_allowed", "_used")

    def __init__(self) -> None:
        self._used = self._allowed = float(PRIOR)

    @property
    def value(self) -> float:
        return self._used / self._allowed

    def add(self, used: int, allowed: int) -> None:
        self._used = FORGET * self._used + used
        self._allowed = FORGET * self._allowed + allowed
