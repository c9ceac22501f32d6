"""`Route`: all that the gateway reads of a request's body. The rest is the replica's to judge."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from xi_core.api.body import decode_body

DEFAULT_TOKENS = 256
"""What a request is taken to cost when it doesn't say how many tokens it wants."""


MOST_TOKENS = 131_072
"""What a request is taken to cost at most, whatever it says."""


class Route(Struct):
    """Fields that decide where a request goes; all others are skipped without being built."""

    model: str | UnsetType = UNSET
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    messages: Raw = Raw(b"")
    prompt: Raw = Raw(b"")
    tools: Raw = Raw(b"")
    """These three are places in the body, for routers that want the prompt's beginning: neither decoded nor copied."""

    @property
    def most_tokens(self) -> int | None:
        """The request's own limit of tokens, as far as it can be believed: it has not been checked, and routers add it up."""
        wanted = self.max_completion_tokens or self.max_tokens
        return None if wanted is None else min(max(wanted, 1), MOST_TOKENS)


_decode = msgspec.json.Decoder(Route).decode


def read_route(body: bytes) -> Route:
    """The route fields of `body`. Raises `InvalidRequest`: not JSON (with the position), or a field of the wrong type."""
    return decode_body(_decode, body)
