"""Which sequence is in which row, and what the next pass reads of waiting prompts. Plain bookkeeping, no tensors. Used by engine.py.

Rows 0 to d - 1 decode. A prompt that has been read in part lies in row d: prompts are read in order of arrival, so there is at most one.
The rows behind are free; what they still hold may begin a later prompt (prefixes.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from xi_core.engine.base import SamplingParams
from xi_plugins.engines.transformers.prefixes import LEAST, Content, Prefixes

SamplerT = TypeVar("SamplerT")

_PASS = 64
"""What a pass more costs, in tokens: prompts of different lengths share a pass up to this much padding, or half as many as the pass has
real tokens; a prompt waits for the one before it to be read if it can copy so many of its tokens."""


class Rows(Protocol):
    """The cache, as far as the batch needs it."""

    rows: int
    """How many there are now."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a row to another."""

    def exchange(self, one: int, length: int, other: int, other_length: int) -> None:
        """Let two rows change places, as far as they are filled."""


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
    reused: int = 0
    """Tokens of the prompt that were copied from another row instead of read."""
    written: list[int] = field(default_factory=list)
    """The prompt and the answer so far."""

    def __post_init__(self) -> None:
        self.written = list(self.prompt)

    def accept(self, token: int) -> None:
        """Note the answer's next token."""
        self.last = token
        self.made += 1
        self.written.append(token)

    def content(self) -> Content:
        """What its row holds."""
        return Content(self.written, self.filled, self.sampling.adapter)


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

    def content(self) -> Content:
        """What the row holds once the chunk has been read."""
        return Content(self.sequence.prompt, self.sequence.filled + self.count, self.sequence.sampling.adapter)


class Batch(Generic[SamplerT]):
    """The rows. `reuse`: whether prompts may begin with what other rows hold."""

    def __init__(self, slots: int, cache: Rows, reuse: bool = True) -> None:
        self.slots = slots
        self.decoding: list[Sequence[SamplerT]] = []
        self.waiting: list[Sequence[SamplerT]] = []
        self._cache = cache
        self._prefixes = Prefixes() if reuse else None

    def __len__(self) -> int:
        return len(self.decoding) + len(self.waiting)

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache, by row: of those that run, and of free rows whose content is kept."""
        found = {row: sequence.filled for row, sequence in enumerate((*self.decoding, *self.waiting)) if sequence.filled}
        if self._prefixes is not None:
            found |= {row: content.length for row, content in self._prefixes.kept.items()}
        return [found.get(row, 0) for row in range(max(found, default=-1) + 1)]

    # ---- prompts ----

    def group(self, budget: int) -> list[Chunk[SamplerT]]:
        """Chunks of waiting prompts for one pass, at most `budget` tokens, in rows from `len(decoding)` on: short ones together, as little
        padded as can be. What their rows can take from other rows has been copied. To be read, or removed, before anything else is done.
        """
        group: list[Chunk[SamplerT]] = []
        for sequence in self.waiting:
            row = len(self.decoding) + len(group)
            if budget <= 0 or row >= self._cache.rows:
                break
            source, common = (-1, sequence.filled) if sequence.filled else self._find(sequence)
            if self._prefixes is not None and any(_gives(chunk, sequence) >= common + _PASS for chunk in group):
                break
            chunk = Chunk(sequence, min(budget, len(sequence.prompt) - common))
            if group and not _fits(group, chunk):
                break
            if not sequence.filled:
                self._place(sequence, row, source, common)
            group.append(chunk)
            budget -= chunk.count
        return group

    def _find(self, sequence: Sequence[SamplerT]) -> tuple[int, int]:
        if self._prefixes is None or len(sequence.prompt) <= LEAST:
            return -1, 0
        running = ((row, other.content()) for row, other in enumerate((*self.decoding, *self.waiting[:1])) if other.filled)
        return self._prefixes.find(running, sequence.prompt, sequence.sampling.adapter)

    def _place(self, sequence: Sequence[SamplerT], row: int, source: int, common: int) -> None:
        """Give a free row to a sequence that begins with `common` tokens of row `source`."""
        if self._prefixes is None:
            return
        kept = self._prefixes.kept
        if source in kept and kept[source].length - common < LEAST:
            del kept[source]  # nothing is lost with it: the sequence has all of it, or nearly so
        if row in kept:
            spare = self._prefixes.room_for(row, range(row + 1, self._cache.rows))
            if spare is not None and spare == source:
                self._cache.exchange(row, kept[row].length, source, common)
                source = row
            elif spare is not None:
                self._cache.move(row, spare, kept[row].length)
            if spare is not None:
                kept[spare] = kept[row]
            del kept[row]
        if common and source != row:
            self._cache.move(source, row, common)
        sequence.filled = sequence.reused = common

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

    # ---- leaving ----

    def remove(self, sequence: Sequence[SamplerT]) -> None:
        """Take a sequence out; the last row that decodes moves into its place, and the row behind that into the gap. Its own content goes
        to the row that is free then."""
        if sequence in self.waiting:
            row = len(self.decoding) + self.waiting.index(sequence)
            self.waiting.remove(sequence)
        else:
            row, last = self.decoding.index(sequence), len(self.decoding) - 1
            if row != last:
                self._swap(row, sequence, last, self.decoding[last])
                self.decoding[row] = self.decoding[last]
            row = last
            self.decoding.pop()
            if self.waiting and self.waiting[0].filled:
                self._swap(last, sequence, last + 1, self.waiting[0])
                row = last + 1
        if self._prefixes is not None and sequence.filled:
            self._prefixes.keep(row, sequence.content())

    def remove_all(self, sequences: list[Sequence[SamplerT]]) -> None:
        """Take several out, those in the last rows first, so that none moves that leaves as well."""
        places = {id(other): place for place, other in enumerate((*self.decoding, *self.waiting))}
        for sequence in sorted(sequences, key=lambda leaving: places[id(leaving)], reverse=True):
            self.remove(sequence)

    def _swap(self, leaving_row: int, leaving: Sequence[SamplerT], row: int, staying: Sequence[SamplerT]) -> None:
        if self._prefixes is None:
            self._cache.move(row, leaving_row, staying.filled)
        else:
            self._cache.exchange(leaving_row, leaving.filled, row, staying.filled)

    def find(self, id: int) -> Sequence[SamplerT] | None:
        """The sequence of that id."""
        return next((sequence for sequence in (*self.decoding, *self.waiting) if sequence.id == id), None)


def _gives(chunk: Chunk[SamplerT], sequence: Sequence[SamplerT]) -> int:
    """Tokens that the sequence could copy once the chunk has been read."""
    return chunk.content().shared(sequence.prompt[:-1], sequence.sampling.adapter)


def _fits(group: list[Chunk[SamplerT]], chunk: Chunk[SamplerT]) -> bool:
    counts = [other.count for other in group] + [chunk.count]
    real = sum(counts)
    padding = len(counts) * max(counts) - real
    return padding <= max(_PASS, real // 2)
