"""Names in the order in which people count: `cuda:2` before `cuda:10`."""

from __future__ import annotations

import re
from functools import lru_cache

_DIGITS = re.compile(r"([0-9]+)")


@lru_cache(maxsize=65536)
def natural(name: str) -> tuple[str | int, ...]:
    """A key to sort by. Remembered: a placement compares the names of all devices, which are few."""
    return tuple(int(part) if number % 2 else part for number, part in enumerate(_DIGITS.split(name)))
