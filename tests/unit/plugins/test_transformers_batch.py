"""Rows of the batch: joins, leaves, chunks and shared prefixes, checked against a model of the cache that is a list per row."""

from __future__ import annotations

import random

import pytest

from xi_core.engine.base import SamplingParams
from xi_plugins.engines.transformers.batch import Batch, Chunk, Sequence
from xi_plugins.engines.transformers.prefixes import LEAST

Tokens = list[int]


class ListRows:
    """A cache that remembers which token, of which adapter, lies in which column; what is behind a row's length is garbage."""

    def __init__(self, rows: int = 6) -> None:
        self.rows = rows
        self.content: list[list[object]] = [[] for _ in range(rows)]
        self.copied = 0

    def move(self, source: int, target: int, length: int) -> None:
        assert len(self.content[source]) >= length
        self.content[target] = [*self.content[source][:length], "garbage"]
        self.copied += length

    def exchange(self, one: int, length: int, other: int, other_length: int) -> None:
        first, second = self.content[one][:length], self.content[other][:other_length]
        assert (len(first), len(second)) == (length, other_length)
        self.content[one], self.content[other] = [*second, "garbage"], [*first, "garbage"]

    def read(self, batch: Batch[None], group: list[Chunk[None]]) -> int:
        """Do what a pass over `group` does to the cache. Returns the number of tokens read."""
        for offset, chunk in enumerate(group):
            sequence, row = chunk.sequence, len(batch.decoding) + offset
            kept = self.content[row][: sequence.filled]
            assert len(kept) == sequence.filled
            self.content[row] = [*kept, *((token, sequence.sampling.adapter) for token in chunk.tokens), "garbage"]
        batch.advance(group)
        return sum(chunk.count for chunk in group)


def sequence(id: int, prompt: Tokens, adapter: str | None = None) -> Sequence[None]:
    return Sequence(id, prompt, SamplingParams(max_tokens=8, adapter=adapter), None)


def check(batch: Batch[None], cache: ListRows) -> None:
    started = batch.decoding + [other for other in batch.waiting if other.filled]
    assert len(started) <= len(batch.decoding) + 1, "one prompt at most is read in part"
    for row, member in enumerate(started):
        assert cache.content[row][: member.filled] == [(token, member.sampling.adapter) for token in member.written[: member.filled]]
    lengths = batch.lengths
    assert lengths[: len(started)] == [member.filled for member in started]
    if batch._prefixes is not None:
        for row, content in batch._prefixes.kept.items():
            assert len(started) <= row < cache.rows
            assert lengths[row] == content.length
            assert cache.content[row][: content.length] == [(token, content.adapter) for token in content.tokens[: content.length]]


def decode(batch: Batch[None], cache: ListRows, chance: random.Random) -> None:
    for row, member in enumerate(batch.decoding):
        if member.made:
            cache.content[row] = [*cache.content[row][: member.filled], (member.last, member.sampling.adapter), "garbage"]
            member.filled += 1
        member.accept(chance.randrange(3))


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_rows_hold_their_own_sequence_through_joins_and_leaves(seed: int, reuse: bool) -> None:
    chance = random.Random(seed)
    cache = ListRows()
    batch: Batch[None] = Batch(8, cache, reuse)
    stems = [[chance.randrange(3) for _ in range(chance.randint(10, 150))] for _ in range(4)]
    reused = 0
    for id in range(150):
        if len(batch) < batch.slots and chance.random() < 0.7:
            stem = chance.choice(stems)
            prompt = stem[: chance.randint(1, len(stem))] + [chance.randrange(3) for _ in range(chance.randint(1, 30))]
            batch.waiting.append(sequence(id, prompt, chance.choice([None, None, "a"])))
        if chance.random() < 0.6:
            decode(batch, cache, chance)
            budget = chance.randint(1, 120)
            while group := batch.group(budget):
                members = [chunk.sequence for chunk in group]
                assert members == batch.waiting[: len(group)]
                if chance.random() < 0.1:  # as when there is no memory for them
                    batch.remove_all(members)
                    check(batch, cache)
                    continue
                budget -= cache.read(batch, group)
                reused += sum(chunk.sequence.reused for chunk in group)
                check(batch, cache)
            assert budget >= 0
        if len(batch) and chance.random() < 0.4:
            members = [*batch.decoding, *batch.waiting]
            batch.remove_all(chance.sample(members, chance.randint(1, min(3, len(members)))))
        check(batch, cache)
    assert (reused > 100) is reuse


def test_groups_stay_within_the_budget_and_in_order() -> None:
    cache = ListRows()
    batch: Batch[None] = Batch(8, cache)
    batch.waiting = [sequence(id, [id] * length) for id, length in enumerate((10, 12, 100, 5))]
    group = batch.group(60)
    assert [(chunk.sequence.id, chunk.count) for chunk in group] == [(0, 10), (1, 12), (2, 38)]


def test_a_long_prompt_does_not_pad_short_ones() -> None:
    cache = ListRows()
    batch: Batch[None] = Batch(8, cache)
    batch.waiting = [sequence(id, [id] * (400 if id == 0 else 10)) for id in range(6)]
    sizes = []
    while group := batch.group(512):
        sizes.append(len(group))
        cache.read(batch, group)
    assert sizes == [1, 5]


def test_no_more_prompts_than_rows() -> None:
    cache = ListRows(3)
    batch: Batch[None] = Batch(8, cache)
    batch.waiting = [sequence(id, [id] * 4) for id in range(5)]
    cache.read(batch, batch.group(512))
    assert len(batch.decoding) == 3
    assert batch.group(512) == []


# ---- prefixes -----------------------------------------------------------------------------------


def serve(batch: Batch[None], cache: ListRows, *members: Sequence[None]) -> list[int]:
    """Let sequences join at once and their prompts be read. Returns how many tokens each pass read."""
    batch.waiting += members
    passes = []
    while group := batch.group(10_000):
        passes.append(cache.read(batch, group))
        check(batch, cache)
    return passes


STEM = list(range(100, 300))


def test_a_prompt_begins_with_what_a_running_row_holds() -> None:
    cache = ListRows()
    batch: Batch[None] = Batch(8, cache)
    assert serve(batch, cache, sequence(1, [*STEM, 1])) == [201]
    assert serve(batch, cache, sequence(2, [*STEM, 2, 3])) == [2]
    assert serve(batch, cache, sequence(3, [*STEM, 2, 3])) == [1], "the last token is read for its logits"
    assert [member.reused for member in batch.decoding] == [0, 200, 201]


def test_prompts_that_come_together_are_read_once() -> None:
    cache = ListRows(8)
    batch: Batch[None] = Batch(8, cache)
    assert serve(batch, cache, *(sequence(id, [*STEM, id]) for id in range(8))) == [201, 7]


def test_a_row_that_ended_is_used_and_the_oldest_goes_first() -> None:
    cache = ListRows(4)
    batch: Batch[None] = Batch(4, cache)
    talks = [[stem] * 40 for stem in range(5)]
    for id, talk in enumerate(talks[:4]):
        serve(batch, cache, sequence(id, talk))
        batch.remove(batch.decoding[0])
    assert serve(batch, cache, sequence(9, [*talks[0], 1])) == [1]
    batch.remove(batch.decoding[0])
    assert serve(batch, cache, sequence(10, [*talks[4], 1])) == [41], "takes the place of talk 1, the oldest"
    batch.remove(batch.decoding[0])
    assert [serve(batch, cache, sequence(20 + id, [*talks[id], 1, 1])) for id in (0, 4, 3, 2)] == [[1], [1], [2], [2]]
    batch.remove_all(list(batch.decoding))
    assert serve(batch, cache, sequence(30, [*talks[1], 1])) == [41]


def test_answers_count_as_well_and_adapters_are_apart() -> None:
    cache = ListRows()
    batch: Batch[None] = Batch(8, cache)
    first = sequence(1, STEM)
    serve(batch, cache, first)
    for _ in range(5):
        decode(batch, cache, random.Random(1))
    batch.remove(first)
    follow_up = [*first.written, 7, 8]
    assert serve(batch, cache, sequence(2, follow_up, "other")) == [len(follow_up)]
    assert serve(batch, cache, sequence(3, follow_up)) == [3], "the last token of an answer is in no cache"


def test_without_anything_in_common_nothing_is_copied() -> None:
    cache = ListRows()
    batch: Batch[None] = Batch(6, cache)
    serve(batch, cache, *(sequence(id, [id] * 30) for id in range(6)))
    serve(batch, cache, sequence(7, [1] * (LEAST - 1)))
    batch.remove_all(list(batch.decoding))
    assert cache.copied == 0


def test_switched_off_it_reads_all() -> None:
    cache = ListRows()
    batch: Batch[None] = Batch(8, cache, reuse=False)
    assert serve(batch, cache, sequence(1, STEM), sequence(2, STEM)) == [400]
    assert serve(batch, cache, sequence(3, STEM)) == [200]
