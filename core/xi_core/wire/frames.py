"""Messages between a gateway and a replica: the token path.

A gateway sends `Submit`, `Abort` and `Ping`; a replica answers with `Step` (one message per step and gateway, with the frames of
many requests) and `Pong`. Frames of one request come in this order: one `Open`, any number of `Data`, one `End`. All are msgpack arrays
whose first element is the tag, so that decoding is one typed pass and a field may be appended without breaking an older reader.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Submit(Struct, array_like=True, tag=1):
    """A request: its id (unique within the gateway's life), its route and the client's body as it came."""

    id: int
    route: str
    body: bytes
    protocol: int = 1


class Abort(Struct, array_like=True, tag=2):
    """The client has left: stop, free the slot, send nothing more for this id."""

    id: int


class Ping(Struct, array_like=True, tag=3):
    """Life sign of a gateway; the replica answers at once with `Pong`."""

    seq: int


class Open(Struct, array_like=True, tag=1):
    """The first frame of an answer. Nothing was sent to the client before it, so until it comes another replica may try."""

    id: int
    status: int
    content_type: str
    prompt_tokens: int = 0
    retry_after: float | None = None


class Data(Struct, array_like=True, tag=2):
    """Bytes for the client, whole SSE events or a body, with the number of tokens in them."""

    id: int
    data: bytes
    tokens: int = 0


class End(Struct, array_like=True, tag=3):
    """The answer is whole. `finish` is the finish reason of the last choice, or an error's code."""

    id: int
    finish: str = ""


Frame = Open | Data | End


class Step(Struct, array_like=True, tag=4):
    """Frames of one step, in order."""

    frames: list[Frame]


class EngineCounters(Struct, array_like=True):
    """What an engine's library itself counts, by its own last word: some seconds old. Counts of tokens grow from the library's start on."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    """Share of its key-value cache that is in use, 0 to 1."""
    prefix_queries: int = 0
    """Prompt tokens that it has looked for in its cache of prefixes…"""
    prefix_hits: int = 0
    """…and those that it has found there."""
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Load(Struct, array_like=True):
    """A replica's live counters, which ride on every `Pong`."""

    running: int = 0
    waiting: int = 0
    slots: int = 0
    steps: int = 0
    tokens: int = 0
    healthy: bool = True
    draining: bool = False
    engine: EngineCounters | None = None
    """None where the engine's library counts nothing of its own."""
    asleep: int = 0
    """Level at which it sleeps, or is about to; 0: awake."""


class Pong(Struct, array_like=True, tag=5):
    """Answer to `Ping`, with the life that answers it."""

    seq: int
    incarnation: str
    load: Load


FromGateway = Submit | Abort | Ping
FromReplica = Step | Pong

encode = msgspec.msgpack.Encoder().encode
decode_from_gateway = msgspec.msgpack.Decoder(FromGateway).decode
decode_from_replica = msgspec.msgpack.Decoder(FromReplica).decode
