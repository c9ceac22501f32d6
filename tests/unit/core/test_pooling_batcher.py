"""Batches of pooling inputs: their size and width, turns between requests, and what fails."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from xi_core.engine.pooling import PoolingInput
from xi_core.engine.pooling_batcher import BatchOutput, PoolingBatcher
from xi_core.errors import InvalidRequest


class Batches:
    """A batcher whose work notes each batch's lengths and waits at a gate; its value of an input is its length."""

    def __init__(self, most: int = 4, budget: int = 100, interval: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Semaphore(0)
        self.entered: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.outputs: queue.SimpleQueue[BatchOutput] = queue.SimpleQueue()
        self.failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.batcher = PoolingBatcher(most, budget, self.outputs.put, self.failures.put, interval)
        self.batcher.start()

    def work(self, inputs: list[PoolingInput]) -> Sequence[float]:
        self.batches.append([len(one.ids) for one in inputs])
        self.entered.put(None)
        assert self.gate.acquire(timeout=10)
        return [float(len(one.ids)) for one in inputs]

    def submit(self, id: int, *lengths: int, work: Any = None) -> None:
        self.batcher.submit(id, [PoolingInput([1] * length) for length in lengths], work or self.work)

    def busy(self) -> None:
        """Run a batch of one that stands at the gate, so that what comes next waits together."""
        self.submit(0, 1)
        self.entered.get(timeout=10)

    def open(self) -> None:
        self.gate.release(1000)

    def values(self, count: int) -> dict[tuple[int, int], Any]:
        found: dict[tuple[int, int], Any] = {}
        while len(found) < count:
            found.update({(id, index): value for id, index, value in self.outputs.get(timeout=10).values})
        return found

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: Any) -> None:
        self.open()
        self.batcher.stop(10.0)


def test_every_input_has_its_value_in_its_place() -> None:
    with Batches() as run:
        run.open()
        run.submit(1, 3, 50, 7, 50, 1)
        run.submit(2, 9)
        assert run.values(6) == {(1, 0): 3.0, (1, 1): 50.0, (1, 2): 7.0, (1, 3): 50.0, (1, 4): 1.0, (2, 0): 9.0}


def test_batches_are_bounded_by_inputs_and_by_tokens() -> None:
    with Batches(most=4, budget=100) as run:
        run.busy()
        run.submit(1, *[5] * 10, *[40] * 5)
        run.open()
        run.values(16)
    assert run.batches[1:] == [[40, 40], [40, 40], [40], [5] * 4, [5] * 4, [5] * 2]


def test_an_input_larger_than_the_budget_goes_alone() -> None:
    with Batches(budget=100) as run:
        run.busy()
        run.submit(1, 300, 299)
        run.open()
        run.values(3)
    assert run.batches[1:] == [[300], [299]]


def test_short_inputs_share_a_batch_and_much_shorter_ones_than_a_long_do_not() -> None:
    with Batches(most=10, budget=1000) as run:
        run.busy()
        run.submit(1, 1, 32, 2)
        run.open()
        run.values(4)
        run.submit(2, 64, 32, 31)
        run.values(3)
    assert [sorted(batch) for batch in run.batches[1:]] == [[1, 2, 32], [32, 64], [31]]


def test_requests_share_batches_and_take_turns() -> None:
    with Batches(most=2, budget=1000) as run:
        run.busy()
        run.submit(1, *[60] * 6)
        run.submit(2, 10)
        run.submit(3, 50)
        run.open()
        run.values(9)
    assert run.batches[1:] == [[60, 60], [10], [50], [60, 60], [60, 60]]


def test_other_work_has_batches_of_its_own() -> None:
    other: list[int] = []

    def second(inputs: list[PoolingInput]) -> Sequence[float]:
        other.append(len(inputs))
        return [0.0] * len(inputs)

    with Batches() as run:
        run.busy()
        run.submit(1, 5, 5)
        run.submit(2, 5, 5, work=second)
        run.open()
        run.values(5)
    assert run.batches[1:] == [[5, 5]]
    assert other == [2]


def test_what_is_removed_is_not_run() -> None:
    with Batches(most=1) as run:
        run.busy()
        run.submit(1, 60, 60, 60)
        run.submit(2, 50)
        run.batcher.remove(1)
        run.batcher.remove(77)
        run.open()
        assert (2, 0) in run.values(2)
    assert run.batches[1:] == [[50]]


def test_an_error_ends_the_requests_of_its_batch_alone() -> None:
    def bad(inputs: list[PoolingInput]) -> Sequence[float]:
        raise InvalidRequest("no", param="input")

    with Batches(most=2) as run:
        run.busy()
        run.submit(1, 9, 9, 9, work=bad)
        run.submit(2, 8)
        run.open()
        outputs = [run.outputs.get(timeout=10) for _ in range(3)]
    assert [(output.failed, str(output.error)) for output in outputs if output.failed] == [([1], "no")]
    assert run.batches[1:] == [[8]]


@pytest.mark.parametrize("values", [RuntimeError("broken"), [1.0]])
def test_anything_else_ends_the_batcher(values: Any) -> None:
    def bad(inputs: list[PoolingInput]) -> Sequence[float]:
        if isinstance(values, Exception):
            raise values
        return values

    with Batches() as run:
        run.submit(1, 2, 2, work=bad)
        assert isinstance(run.failures.get(timeout=10), RuntimeError | ValueError)


def test_what_waits_when_it_ends_may_be_served_elsewhere() -> None:
    def breaks(inputs: list[PoolingInput]) -> Sequence[float]:
        run.submit(3, 5)
        raise RuntimeError("out of memory")

    with Batches(most=1) as run:
        run.busy()
        run.submit(1, 2, 2, work=breaks)
        run.submit(2, 4)
        run.open()
        assert isinstance(run.failures.get(timeout=10), RuntimeError)
        assert run.outputs.get(timeout=10).values == [(0, 0, 1.0)]
        last = run.outputs.get(timeout=10)
    assert (last.failed, last.error and last.error.status) == ([2, 3], 503), "not the request whose input broke it"


def test_stopping_does_not_wait_for_the_interval() -> None:
    with Batches(interval=60.0) as run:
        run.submit(1, 5)
        run.batcher.stop(10.0)
        assert not run.batcher._thread.is_alive()
    assert run.batches == []


def test_requests_that_come_within_the_interval_share_a_batch() -> None:
    with Batches(interval=0.5) as run:
        run.open()
        run.submit(1, 5)
        run.submit(2, 5)
        run.values(2)
    assert run.batches == [[5, 5]]
