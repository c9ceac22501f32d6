"""`Route`: all that the gateway reads of a request's body. The rest is the replica's to judge."""

from __future__ import annotations

import re
from itertools import islice

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from xi_core.api.body import decode_body
from xi_core.api.openai import MAX_CHOICES, MAX_TOTAL_CHOICES

DEFAULT_TOKENS = 256
"""What a request is taken to cost when it doesn't say how many tokens it wants."""


MOST_TOKENS = 131_072
"""What a request is taken to cost at most, whatever it says."""
_SEVERAL = re.compile(rb'\[\s*["\[]')
"""How a list of prompts begins. One of token ids is one prompt."""
_PROMPT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|\[[^\]]*+\]', re.DOTALL)
"""A text or a list of token ids, in JSON that has been found valid."""


class Route(Struct):
    """Fields that decide where a request goes; all others are skipped without being built."""

    model: str | UnsetType = UNSET
    stream: bool | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    messages: Raw = Raw(b"")
    prompt: Raw = Raw(b"")
    tools: Raw = Raw(b"")
    """These three are places in the body, for routers that want the prompt's beginning: neither decoded nor copied."""

    @property
    def most_tokens(self) -> int | None:
        """The request's own limit of tokens, over all its choices. As far as it can be believed: it is unchecked, and routers add it up."""
        wanted = self.max_completion_tokens or self.max_tokens
        return None if wanted is None else min(max(wanted, 1) * self._choices(), MOST_TOKENS)

    def _choices(self) -> int:
        """How many answers are asked for, no more than one request may have."""
        n, prompt = min(max(self.n or 1, 1), MAX_CHOICES), memoryview(self.prompt)
        if not _SEVERAL.match(prompt):
            return n
        return min(n * sum(1 for _ in islice(_PROMPT.finditer(prompt, 1), MAX_TOTAL_CHOICES)), MAX_TOTAL_CHOICES)


_decode = msgspec.json.Decoder(Route).decode


def read_route(body: bytes) -> Route:
    """The route fields of `body`. Raises `InvalidRequest`: not JSON (with the position), or a field of the wrong type."""
    return decode_body(_decode, body)
