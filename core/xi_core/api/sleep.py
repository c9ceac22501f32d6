"""The control API's words for sleep. At level 1 the weights are kept in main memory; at level 2 they are dropped, and read again."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class SleepOrder(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/models/{uid}/sleep`."""

    level: Annotated[int, Meta(ge=1, le=2)] = 1
    """1: the weights are kept in main memory. 2: they are dropped, and read again on waking."""


class SleepAnswer(Struct, kw_only=True):
    """Answer to it, and to `POST /v1/models/{uid}/wake`."""

    model_uid: str
    """The launch."""
    level: int
    """At which it sleeps now; 0: it is awake."""
