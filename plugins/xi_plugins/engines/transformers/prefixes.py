"""`Prefixes`: which row of the cache begins with the same tokens as a new prompt, and what free rows still hold. Plain bookkeeping, no
tensors. Used by batch.py.

A row that was freed keeps its content until a sequence needs the row and no free row holds something older.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

LEAST = 16
"""Fewer tokens in common are not worth a copy. Only rows whose first so many tokens are the prompt's own are looked at."""


@dataclass(slots=True)
class Content:
    """What a row holds: `length` of these tokens, as the model with this adapter read them. `used` orders contents by age."""

    tokens: list[int]
    length: int
    adapter: str | None
    used: int = 0

    def shared(self, tokens: list[int], adapter: str | None, more_than: int = 0) -> int:
        """How many of `tokens` this row begins with; 0 unless that is more than `more_than`, and at least `LEAST`."""
        most = min(self.length, len(tokens))
        least = max(LEAST, more_than + 1)
        # The first look is the cheap one: it sends off nearly all rows of other prompts.
        if self.adapter != adapter or most < least or self.tokens[:LEAST] != tokens[:LEAST] or self.tokens[:least] != tokens[:least]:
            return 0
        return _common(self.tokens, tokens, least, most)


def _common(some: list[int], others: list[int], low: int, high: int) -> int:
    """Length of the common beginning, which is between `low` and `high`: halving, for comparing slices costs far less than a loop."""
    if some[:high] == others[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if some[low:middle] == others[low:middle]:
            low = middle
        else:
            high = middle
    return low


class Prefixes:
    """Contents of free rows, and the search over these and those that run."""

    def __init__(self) -> None:
        self.kept: dict[int, Content] = {}
        """By row."""
        self._clock = count(1)

    def keep(self, row: int, content: Content) -> None:
        """Note that a row, free from now on, still holds `content`."""
        content.used = next(self._clock)
        if content.length >= LEAST:
            self.kept[row] = content
        else:
            self.kept.pop(row, None)

    def find(self, running: Iterable[tuple[int, Content]], tokens: list[int], adapter: str | None) -> tuple[int, int]:
        """The row that has most of `tokens`, and how many; but never all, since the last one's logits are wanted. `(-1, 0)`: none."""
        best, most = -1, 0
        wanted = tokens[:-1]
        for row, content in (*running, *self.kept.items()):
            found = content.shared(wanted, adapter, most)
            if found > most:
                best, most = row, found
        if best in self.kept:
            self.kept[best].used = next(self._clock)
        return best, most

    def room_for(self, row: int, free: range) -> int | None:
        """Of the `free` rows the one to which the content of `row` should go before `row` is written; None: it is the oldest itself."""
        mine = self.kept[row].used
        ages = [(self.kept[other].used if other in self.kept else 0, -other) for other in free if other != row]
        oldest = min(ages, default=(mine, 0))
        return -oldest[1] if oldest[0] < mine else None
