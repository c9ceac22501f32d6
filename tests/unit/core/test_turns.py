"""Turns: requests with several parts and requests with one."""

from __future__ import annotations

import pytest

from xi_core.engine.turns import Turns


def waiting(*requests: list[int]) -> Turns[str]:
    """Each request has the number of its first part."""
    turns: Turns[str] = Turns()
    for parts in requests:
        for part in parts:
            turns.add(parts[0], part, str(part))
    return turns


def taken(turns: Turns[str]) -> list[str]:
    return [turns.pop() for _ in range(len(turns))]


def test_requests_take_turns() -> None:
    turns = waiting([1, 2, 3, 4], [5], [6, 7])
    assert len(turns) == 7
    assert taken(turns) == ["1", "5", "6", "2", "7", "3", "4"]


def test_who_comes_while_others_wait_has_its_turn() -> None:
    turns = waiting([1, 2, 3])
    assert turns.pop() == "1"
    turns.add(9, 9, "9")
    assert taken(turns) == ["2", "9", "3"]


def test_a_part_that_is_given_up_is_forgotten() -> None:
    turns = waiting([1, 2, 3], [4])
    for part in (2, 4, 77):
        turns.discard(part)
    assert taken(turns) == ["1", "3"]
    turns.add(1, 1, "again")
    assert taken(turns) == ["again"]
    with pytest.raises(KeyError):
        turns.pop()
