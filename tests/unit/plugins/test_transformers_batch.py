"""Rows of the batch: joins, leaves and chunks, checked against a model of the cache that is a list per row."""

from __future__ import annotations

import random

import pytest

from xi_core.engine.base import SamplingParams
from xi_plugins.engines.transformers.batch import Batch, Chunk, Sequence

Rows = dict[int, list[tuple[int, int]]]


def sequence(id: int, length: int) -> Sequence[None]:
    return Sequence(id, list(range(length)), SamplingParams(max_tokens=8), None)


def read_group(batch: Batch[None], rows: Rows, group: list[Chunk[None]]) -> None:
    """Do to `rows` what a pass over `group` does to the cache."""
    for offset, chunk in enumerate(group):
        content = rows.setdefault(len(batch.decoding) + offset, [])
        del content[chunk.sequence.filled :]
        content += [(chunk.sequence.id, token) for token in chunk.tokens]
    batch.advance(group)


def check(batch: Batch[None], rows: Rows) -> None:
    started = batch.decoding + [other for other in batch.waiting if other.filled]
    assert len(started) <= len(batch.decoding) + 1, "one prompt at most is read in part"
    for row, member in enumerate(started):
        assert rows[row][: member.filled] == [(member.id, token) for token in range(member.filled)]


@pytest.mark.parametrize("seed", range(30))
def test_rows_hold_their_own_sequence_through_joins_and_leaves(seed: int) -> None:
    chance = random.Random(seed)
    rows: Rows = {}

    def move(source: int, target: int, length: int) -> None:
        rows[target] = rows[source][:length]

    batch: Batch[None] = Batch(6, move)
    for id in range(80):
        if len(batch) < batch.slots and chance.random() < 0.7:
            batch.waiting.append(sequence(id, chance.randint(1, 50)))
        if chance.random() < 0.6:
            for group in batch.groups(chance.randint(1, 40)):
                read_group(batch, rows, group)
                check(batch, rows)
        if len(batch) and chance.random() < 0.4:
            batch.remove(chance.choice([*batch.decoding, *batch.waiting]))
        check(batch, rows)
        assert batch.lengths == [member.filled for member in (*batch.decoding, *batch.waiting) if member.filled]


def test_groups_stay_within_the_budget_and_in_order() -> None:
    batch: Batch[None] = Batch(8, lambda *_: None)
    batch.waiting = [sequence(0, 10), sequence(1, 12), sequence(2, 100), sequence(3, 5)]
    groups = batch.groups(60)
    assert [(chunk.sequence.id, chunk.count) for group in groups for chunk in group] == [(0, 10), (1, 12), (2, 38)]
    assert sum(chunk.count for group in groups for chunk in group) == 60


def test_a_long_prompt_does_not_pad_short_ones() -> None:
    batch: Batch[None] = Batch(8, lambda *_: None)
    batch.waiting = [sequence(0, 400), *(sequence(id, 10) for id in range(1, 6))]
    assert [len(group) for group in batch.groups(512)] == [1, 5]
