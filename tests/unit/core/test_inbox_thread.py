"""The thread under both batchers, with letters for work."""

from __future__ import annotations

import queue
from collections.abc import Callable

import pytest

from xi_core.engine.inbox_thread import InboxThread


class Letters(InboxThread):
    """Hands over all letters that wait, as one word; `!` breaks it."""

    def __init__(self, interval: float = 0.0) -> None:
        self.failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        super().__init__("letters", self.failures.put, interval)
        self.words: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.waiting = ""

    def submit(self, letter: str) -> None:
        self._post(lambda: self._set(self.waiting + letter))

    def clear(self) -> None:
        self._post(lambda: self._set(""))

    def _set(self, waiting: str) -> None:
        self.waiting = waiting

    def _has_work(self) -> bool:
        return bool(self.waiting)

    def _work(self) -> None:
        if "!" in self.waiting:
            raise RuntimeError("broken")
        self.words.put(self.waiting)
        self.waiting = ""

    def alive(self) -> bool:
        return self._thread.is_alive()


@pytest.fixture
def letters(request: pytest.FixtureRequest) -> Callable[..., Letters]:
    def make(interval: float = 0.0) -> Letters:
        made = Letters(interval)
        request.addfinalizer(lambda: made.stop(10.0))
        return made

    return make


def test_what_came_is_done_in_order_before_the_work(letters: Callable[..., Letters]) -> None:
    run = letters()
    for letter in "abc":
        run.submit(letter)
    run.start()
    assert run.words.get(timeout=10) == "abc"


def test_what_undoes_all_work_leaves_none(letters: Callable[..., Letters]) -> None:
    run = letters()
    run.submit("a")
    run.clear()
    run.start()
    run.submit("b")
    assert run.words.get(timeout=10) == "b"


def test_after_idleness_it_waits_for_more(letters: Callable[..., Letters]) -> None:
    run = letters(interval=0.5)
    run.start()
    run.submit("a")
    run.submit("b")
    assert run.words.get(timeout=10) == "ab"


def test_a_stop_cuts_the_wait_short_and_leaves_the_work(letters: Callable[..., Letters]) -> None:
    run = letters(interval=60.0)
    run.start()
    run.submit("a")
    run.stop(10.0)
    assert not run.alive()
    assert run.words.empty()


def test_what_is_raised_ends_it_and_is_told_once(letters: Callable[..., Letters]) -> None:
    run = letters()
    run.start()
    run.submit("!")
    assert str(run.failures.get(timeout=10)) == "broken"
    run.submit("a")
    run.stop(10.0)
    assert not run.alive()
    assert run.failures.empty()
    assert run.words.empty()


def test_one_that_was_never_started_can_be_stopped(letters: Callable[..., Letters]) -> None:
    letters().stop(10.0)
