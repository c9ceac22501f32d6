"""Which sequence has which slot of the cache, and what else lies in it. Plain bookkeeping. Used by engine.py.

What a finished sequence leaves may stay for a while: a prompt that begins alike begins with it. So may what running ones have read.
"""

from __future__ import annotations

from dataclasses import dataclass

from xi_core.engine.base import SamplingParams
from xi_plugins.engines.llama_cpp.llama_cpp_python.sampling import RowSampler

WORTH_SHARING = 32
"""Fewer tokens in common are read again: that costs nearly nothing."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence in the batch. `filled` counts its tokens in the cache, of which `cached` were there before it came; `last` is the newest
    token, which isn't in it yet; `made` counts the answer's."""

    id: int
    prompt: list[int]
    sampling: SamplingParams
    sampler: RowSampler
    slot: int
    filled: int = 0
    cached: int = 0
    last: int = -1
    made: int = 0

    @property
    def decodes(self) -> bool:
        """Whether its prompt is read."""
        return self.made > 0


@dataclass(slots=True, frozen=True)
class Place:
    """A slot for a sequence, which begins with `kept` tokens that lie in the cache for slot `source` (which may be the same)."""

    slot: int
    source: int = -1
    kept: int = 0


class Slots:
    """The slots. `keep`: most tokens that are left in the cache when their sequences have ended."""

    def __init__(self, count: int, keep: int) -> None:
        self.count = count
        self._keep = keep
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._free = list(range(count))  # the least recently used first

    @property
    def free(self) -> int:
        """How many slots have no sequence."""
        return len(self._free)

    def take(self, prompt: list[int], *, reuse: bool) -> Place:
        """A slot for a new sequence; there must be a free one. All but the last token of a prompt may be found in the cache."""
        source, kept = self._likest(prompt[:-1]) if reuse and self._keep else (-1, 0)
        if source in self._free and kept == len(self._tokens[source]):
            slot = source
        else:
            slot = min(self._free, key=lambda slot: (len(self._tokens[slot]) > 0, slot == source))
        self._free.remove(slot)
        self._tokens[slot] = prompt[:kept]
        return Place(slot, source, kept) if kept else Place(slot)

    def extend(self, slot: int, tokens: list[int]) -> None:
        """Note what was read into a slot."""
        self._tokens[slot] += tokens

    def release(self, slot: int, *, broken: bool = False) -> list[int]:
        """Free a slot, whose cells no other may use if it is `broken`. Returns the slots whose cells must be emptied now."""
        self._free.append(slot)
        emptied = [slot] if broken else []
        if broken:
            self._tokens[slot] = []
        left = sum(len(self._tokens[slot]) for slot in self._free)
        for slot in self._free:
            if left <= self._keep:
                break
            if self._tokens[slot]:
                left -= len(self._tokens[slot])
                self._tokens[slot] = []
                emptied.append(slot)
        return emptied

    def _likest(self, prompt: list[int]) -> tuple[int, int]:
        """The slot that has most of the prompt's beginning, and how many tokens; -1 and 0 if that is not worth while."""
        best, most = -1, WORTH_SHARING - 1
        for slot, tokens in enumerate(self._tokens):
            if tokens[: most + 1] == prompt[: most + 1]:
                found = common(tokens, prompt)
                if found > most:
                    best, most = slot, found
        return (best, most) if best >= 0 else (-1, 0)


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two lists have in common from the beginning on."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
