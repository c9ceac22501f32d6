import itertools
import queue
import threading
from typing import Any

from xi_core.engine.base import SamplingParams, StepOutput
from xi_core.engine.batcher import Batcher
from xi_core.errors import InvalidRequest
from xi_core.testing.fakes import CountingEngine
from xi_core.testing.harness import plan_for

GREEDY = SamplingParams(max_tokens=3, temperature=0)


class Steps:
    """A batcher over a counting engine, its steps in a queue."""

    def __init__(self, engine: CountingEngine, interval: float = 0.0) -> None:
        engine.load(plan_for("xi_core.testing.fakes:CountingEngine", "", "fake", slots=2), lambda stage, share: None)
        self.queue: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
        self.failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.batcher = Batcher(engine, self.queue.put, self.failures.put, interval)
        self.batcher.start()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: Any) -> None:
        self.batcher.stop(5.0)

    def until_finished(self, *ids: int) -> list[StepOutput]:
        waiting, steps = set(ids), []
        while waiting:
            steps.append(self.queue.get(timeout=5))
            waiting -= {token.id for token in steps[-1].tokens if token.finish} | {error.id for error in steps[-1].errors}
        return steps


def test_sequences_beyond_the_slots_wait_their_turn() -> None:
    with Steps(CountingEngine()) as run:
        for id in (1, 2, 3):
            run.batcher.submit(id, [1], GREEDY)
        steps = run.until_finished(1, 2, 3)
    assert max(len(step.tokens) for step in steps) == 2
    assert sum(token.id == 3 for step in steps for token in step.tokens) == 3


def test_a_request_of_many_sequences_holds_up_no_other() -> None:
    with Steps(CountingEngine()) as run:
        for id in range(1, 11):
            run.batcher.submit(id, [1], GREEDY, request=1)
        run.batcher.submit(11, [1], GREEDY)
        steps = run.until_finished(*range(1, 12))
    ended = [token.id for step in steps for token in step.tokens if token.finish]
    assert ended.index(11) <= 4, "behind those that ran, and one more"


def test_removing_a_waiting_sequence() -> None:
    engine = CountingEngine()
    with Steps(engine) as run:
        long = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
        run.batcher.submit(1, [1], long)
        run.batcher.submit(2, [1], long)
        run.batcher.submit(3, [1], GREEDY)
        run.batcher.remove(3)
        steps = run.until_finished(1, 2)
    assert not any(token.id == 3 for step in steps for token in step.tokens)


def test_removing_a_running_sequence_frees_its_slot() -> None:
    engine = CountingEngine()
    with Steps(engine) as run:
        run.batcher.submit(1, [1], SamplingParams(max_tokens=10**6, temperature=0, ignore_eos=True))
        run.queue.get(timeout=5)
        run.batcher.remove(1)
        run.batcher.submit(2, [1], GREEDY)
        run.until_finished(2)
    assert engine.stats().running == 0


def test_a_refused_sequence_harms_no_other() -> None:
    class Picky(CountingEngine):
        def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
            if id == 1:
                raise InvalidRequest("not this one", param="seed")
            super().add(id, prompt, sampling)

    with Steps(Picky()) as run:
        run.batcher.submit(1, [1], GREEDY)
        run.batcher.submit(2, [1], GREEDY)
        steps = run.until_finished(1, 2)
    errors = [error for step in steps for error in step.errors]
    assert [(error.id, error.status, error.param) for error in errors] == [(1, 400, "seed")]


def test_an_engine_that_breaks_is_reported_once() -> None:
    asked, steps = threading.Event(), itertools.count()

    class Broken(CountingEngine):
        def step(self) -> StepOutput:
            asked.wait(5)
            if next(steps):
                run.batcher.submit(4, [1], GREEDY)
                raise RuntimeError("out of memory")
            return StepOutput([])

    with Steps(Broken()) as run:
        for id in (1, 2, 3):
            run.batcher.submit(id, [1], GREEDY)
        asked.set()
        assert str(run.failures.get(timeout=5)) == "out of memory"
        run.batcher.stop(5.0)
        assert run.failures.empty()
        assert run.queue.get(timeout=5).unbegun == []
        assert run.queue.get(timeout=5).unbegun == [3, 4], "which waited, and which came while it failed"


def test_after_idleness_it_waits_to_fill_the_batch() -> None:
    with Steps(CountingEngine(), interval=5.0) as run:
        run.batcher.submit(1, [1], GREEDY)
        threading.Timer(0.05, run.batcher.submit, (2, [1], GREEDY)).start()
        run.batcher.stop(0)
        assert run.queue.empty(), "the wait was cut short by the stop, not by a step"


def test_both_join_the_first_step() -> None:
    with Steps(CountingEngine(), interval=0.3) as run:
        run.batcher.submit(1, [1], GREEDY)
        run.batcher.submit(2, [1], GREEDY)
        assert {token.id for token in run.until_finished(1, 2)[0].tokens} == {1, 2}
