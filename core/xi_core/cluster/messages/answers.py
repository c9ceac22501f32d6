"""What every conversation may answer."""

from __future__ import annotations

from msgspec import Struct


class Done(Struct):
    """Nothing to tell but that it is done."""
