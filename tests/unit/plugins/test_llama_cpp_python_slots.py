"""Which sequence gets which slot, what is left in the cache, and which prompts begin with it."""

from __future__ import annotations

import pytest

from xi_plugins.engines.llama_cpp.llama_cpp_python.slots import WORTH_SHARING, Place, Slots, common

LONG = list(range(100))


def filled(slots: Slots, prompt: list[int], *, reuse: bool = True) -> Place:
    """Take a slot, and read the prompt into it."""
    place = slots.take(prompt, reuse=reuse)
    slots.extend(place.slot, prompt[place.kept :])
    return place


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [
        ([], [], 0),
        ([1], [], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 9, 3], 1),
        ([9], [1], 0),
        (LONG, LONG, 100),
        (LONG, [*LONG[:63], 0], 63),
    ],
)
def test_common(a: list[int], b: list[int], count: int) -> None:
    assert common(a, b) == common(b, a) == count


def test_every_slot_is_given_once() -> None:
    slots = Slots(3, keep=1000)
    assert {filled(slots, [n]).slot for n in range(3)} == {0, 1, 2}
    assert slots.free == 0
    slots.release(1)
    assert (slots.free, slots.take([5], reuse=True)) == (1, Place(1))


def test_a_conversation_goes_on_in_its_slot() -> None:
    slots = Slots(4, keep=1000)
    first = filled(slots, LONG)
    slots.extend(first.slot, [7, 8])
    assert slots.release(first.slot) == []
    assert slots.take([*LONG, 7, 8, 9], reuse=True) == Place(first.slot, first.slot, 102)


def test_the_last_token_of_a_prompt_is_always_read() -> None:
    slots = Slots(2, keep=1000)
    first = filled(slots, LONG)
    slots.release(first.slot)
    assert slots.take(LONG, reuse=True).kept == 99


def test_a_prompt_shares_what_a_running_sequence_has_read() -> None:
    slots = Slots(2, keep=1000)
    first = filled(slots, LONG)
    second = slots.take([*LONG[:50], 1, 2, 3], reuse=True)
    assert (second.source, second.kept) == (first.slot, 50)
    assert second.slot != first.slot


def test_what_was_left_stays_for_others_while_there_are_empty_slots() -> None:
    slots = Slots(3, keep=1000)
    first = filled(slots, LONG)
    slots.release(first.slot)
    for other in ([*LONG[:50], 1], [*LONG[:60], 1]):
        place = filled(slots, other)
        assert (place.source, place.kept) == (first.slot, len(other) - 1)
        assert place.slot != first.slot
    last = filled(slots, [*LONG[:70], 1])  # no other slot is free
    assert last == Place(first.slot, first.slot, 70)


@pytest.mark.parametrize(("keep", "reuse"), [(0, True), (1000, False)])
def test_nothing_is_reused_where_it_must_not_be(keep: int, reuse: bool) -> None:
    slots = Slots(2, keep=keep)
    slots.release(filled(slots, LONG).slot)
    assert slots.take(LONG, reuse=reuse).kept == 0


def test_short_beginnings_are_read_again() -> None:
    slots = Slots(2, keep=1000)
    filled(slots, LONG)
    assert slots.take([*LONG[: WORTH_SHARING - 1], 0, 0], reuse=True).kept == 0
    slots = Slots(2, keep=1000)
    filled(slots, LONG)
    assert slots.take([*LONG[:WORTH_SHARING], 0, 0], reuse=True).kept == WORTH_SHARING


def test_what_is_left_is_bounded_and_the_oldest_goes_first() -> None:
    slots = Slots(3, keep=150)
    places = [filled(slots, [n, *LONG]) for n in range(3)]
    assert slots.release(places[0].slot) == []
    assert slots.release(places[1].slot) == [places[0].slot]
    assert slots.release(places[2].slot) == [places[1].slot]
    assert slots.take([2, *LONG, 5], reuse=True).kept == 101
    none = Slots(1, keep=0)
    assert none.release(filled(none, LONG).slot) == [0]


def test_a_broken_slot_is_emptied() -> None:
    slots = Slots(2, keep=1000)
    place = filled(slots, LONG)
    assert slots.release(place.slot, broken=True) == [place.slot]
    assert slots.take(LONG, reuse=True).kept == 0
