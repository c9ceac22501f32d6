"""Which sequence is in which row, and what the next step reads of waiting prompts. Plain bookkeeping, no tensors. Used by engine.py.

Rows 0 to d - 1 decode. A prompt that has been read in part lies in row d: prompts are read in order of arrival, so there is at most one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from xi_core.engine.base import SamplingParams

SamplerT = TypeVar("SamplerT")

_PADDING = 64
"""Prompts of different lengths share a pass up to this many tokens of padding, or half as many as the pass has real ones."""


@dataclass(slots=True, eq=False)
class Sequence(Generic[SamplerT]):
    """One sequence in the batch. `filled` counts its tokens in the cache; `last` is the newest token, which isn't in it yet."""

    id: int
    prompt: list[int]
    sampling: SamplingParams
    sampler: SamplerT
    filled: int = 0
    last: int = -1
    made: int = 0


@dataclass(slots=True)
class Chunk(Generic[SamplerT]):
    """The next `count` prompt tokens of a sequence."""

    sequence: Sequence[SamplerT]
    count: int

    @property
    def tokens(self) -> list[int]:
        """The ids to read."""
        start = self.sequence.filled
        return self.sequence.prompt[start : start + self.count]


class Batch(Generic[SamplerT]):
    """The rows. `move(source, target, length)` copies a row of the cache."""

    def __init__(self, slots: int, move: Callable[[int, int, int], None]) -> None:
        self.slots = slots
        self.decoding: list[Sequence[SamplerT]] = []
        self.waiting: list[Sequence[SamplerT]] = []
        self._move = move

    def __len__(self) -> int:
        return len(self.decoding) + len(self.waiting)

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache, by row."""
        return [sequence.filled for sequence in self.decoding] + [sequence.filled for sequence in self.waiting[:1] if sequence.filled]

    def groups(self, budget: int) -> list[list[Chunk[SamplerT]]]:
        """Chunks of waiting prompts, `budget` tokens in all, each group for one pass: short ones together, as little padded as can be."""
        groups: list[list[Chunk[SamplerT]]] = []
        for sequence in self.waiting:
            count = min(budget, len(sequence.prompt) - sequence.filled)
            if count <= 0:
                break
            budget -= count
            chunk = Chunk(sequence, count)
            if groups and _fits(groups[-1], chunk):
                groups[-1].append(chunk)
            else:
                groups.append([chunk])
        return groups

    def advance(self, group: list[Chunk[SamplerT]]) -> list[Sequence[SamplerT]]:
        """Note that a group, the first of those that wait, has been read. Returns those that decode from now on, in order of rows."""
        ready = []
        for chunk in group:
            chunk.sequence.filled += chunk.count
            if chunk.sequence.filled == len(chunk.sequence.prompt):
                self.waiting.remove(chunk.sequence)
                self.decoding.append(chunk.sequence)
                ready.append(chunk.sequence)
        return ready

    def remove(self, sequence: Sequence[SamplerT]) -> None:
        """Take a sequence out; the last row that decodes moves into its place, and the row behind that into the gap."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        row, last = self.decoding.index(sequence), len(self.decoding) - 1
        if row != last:
            self._move(last, row, self.decoding[last].filled)
            self.decoding[row] = self.decoding[last]
        self.decoding.pop()
        if self.waiting and self.waiting[0].filled:
            self._move(last + 1, last, self.waiting[0].filled)

    def find(self, id: int) -> Sequence[SamplerT] | None:
        """The sequence of that id."""
        return next((sequence for sequence in (*self.decoding, *self.waiting) if sequence.id == id), None)


def _fits(group: list[Chunk[SamplerT]], chunk: Chunk[SamplerT]) -> bool:
    counts = [other.count for other in group] + [chunk.count]
    real = sum(counts)
    padding = len(counts) * max(counts) - real
    return padding <= max(_PADDING, real // 2)
