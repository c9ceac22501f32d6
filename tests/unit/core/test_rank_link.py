"""Rank 0 and its followers over a link within this process."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from xi_core.engine.base import SamplingParams, SequenceError, StepOutput
from xi_core.engine.grammar import Grammar
from xi_core.engine.rank_link import Leader, RankLink, follow
from xi_core.errors import EngineError, InvalidRequest
from xi_core.testing.fakes import CountingEngine
from xi_core.testing.harness import plan_for

GREEDY = SamplingParams(max_tokens=5, temperature=0)


class Wire(RankLink):
    """One end of a link of threads; rank 0's has the others' queues."""

    def __init__(self, others: list[queue.SimpleQueue[bytes | None]] | None = None) -> None:
        self.others = others
        self.inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def broadcast(self, message: bytes) -> bytes:
        if self.others is not None:
            for other in self.others:
                other.put(message)
            return message
        found = self.inbox.get(timeout=5)
        if found is None:
            raise ConnectionError("the wire is cut")
        return found


class Recording(CountingEngine):
    """Remembers its steps, what it was asked for and how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[tuple[int, int]]] = []
        self.sampled: list[SamplingParams] = []
        self.prepared: list[Grammar] = []
        self.removed: list[int] = []
        self.closed = False
        self.wrong = False
        self.no_room = self.reading = False
        """The next step has no memory for the first sequence, or only reads a part of its prompt."""

    def prepare(self, grammar: Grammar) -> None:
        self.prepared.append(grammar)

    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        if not prompt:
            raise InvalidRequest("the prompt is empty")
        self.sampled.append(sampling)
        super().add(id, prompt, sampling)

    def remove(self, id: int) -> None:
        self.removed.append(id)
        super().remove(id)

    def step(self) -> StepOutput:
        output = super().step()
        if self.no_room or self.reading:
            id, failed = output.tokens[0].id, self.no_room
            output = StepOutput(tokens=[], errors=[SequenceError(id, "no memory")] if failed else [])
            if failed:
                super().remove(id)
            self.no_room = self.reading = False
        if self.wrong:
            output.tokens[0].token += 1
        self.steps.append([(token.id, token.token) for token in output.tokens])
        return output

    def close(self, grace: float) -> None:
        self.closed = True


class Ranks:
    """A leader here, and followers on threads."""

    def __init__(self, count: int = 1) -> None:
        self.engines = [Recording() for _ in range(count + 1)]
        for engine in self.engines:
            engine.load(plan_for("x:Y", "", "fake"), lambda stage, share: None)
        self.wires = [Wire() for _ in range(count)]
        self.head = Wire([wire.inbox for wire in self.wires])
        self.leader = Leader(self.engines[0], self.head)
        self.failures: list[Exception] = []
        self.threads = [
            threading.Thread(target=self._follow, args=(engine, wire), daemon=True)
            for engine, wire in zip(self.engines[1:], self.wires, strict=True)
        ]
        for thread in self.threads:
            thread.start()

    def _follow(self, engine: Recording, wire: Wire) -> None:
        try:
            follow(engine, wire)
        except Exception as error:
            self.failures.append(error)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()


def test_all_ranks_make_the_same_tokens_in_the_same_steps() -> None:
    ranks = Ranks(count=2)
    leader = ranks.leader
    leader.add(1, [1, 2], GREEDY)
    leader.step()
    leader.add(2, [3], SamplingParams(max_tokens=5, temperature=1.0))
    leader.step()
    leader.remove(1)
    for _ in range(5):
        leader.step()
    leader.close(5.0)
    ranks.join()
    first, second, third = ranks.engines
    assert ranks.failures == []
    assert len(first.steps) == 7
    assert first.steps == second.steps == third.steps
    assert [len(step) for step in first.steps] == [1, 2, 1, 1, 1, 1, 0]


def test_what_is_sampled_has_a_seed_that_all_know_and_one_that_was_given_stays() -> None:
    ranks = Ranks()
    leader = ranks.leader
    for id, sampling in enumerate([SamplingParams(max_tokens=2), SamplingParams(max_tokens=2, seed=7), GREEDY]):
        leader.add(id, [1], sampling)
    leader.step()
    leader.close(5.0)
    ranks.join()
    seeds = [[sampling.seed for sampling in engine.sampled] for engine in ranks.engines]
    assert seeds[0] == seeds[1]
    assert seeds[0][0] is not None
    assert seeds[0][1:] == [7, None]


def test_a_grammar_is_prepared_on_every_rank() -> None:
    ranks = Ranks()
    grammar = Grammar(kind="regex", text="a+")
    ranks.leader.prepare(grammar)
    ranks.leader.add(1, [1], SamplingParams(max_tokens=2, temperature=0, grammar=grammar))
    ranks.leader.step()
    ranks.leader.close(5.0)
    ranks.join()
    assert [engine.prepared for engine in ranks.engines] == [[grammar], [grammar]]


def test_what_rank_0_refuses_the_others_never_see() -> None:
    ranks = Ranks()
    with pytest.raises(InvalidRequest, match="empty"):
        ranks.leader.add(1, [], GREEDY)
    ranks.leader.add(2, [1], GREEDY)
    ranks.leader.step()
    ranks.leader.close(5.0)
    ranks.join()
    assert ranks.failures == []
    assert len(ranks.engines[1].sampled) == 1


def test_a_difference_ends_the_rank_that_finds_it() -> None:
    ranks = Ranks()
    ranks.engines[1].wrong = True
    ranks.leader.add(1, [1], GREEDY)
    ranks.leader.step()
    ranks.leader.step()
    ranks.join()
    (failure,) = ranks.failures
    assert isinstance(failure, EngineError)
    assert "computed different tokens" in str(failure)


def test_a_sequence_that_fails_on_one_rank_only_ends_the_rank_that_finds_it_before_it_steps_on() -> None:
    ranks = Ranks()
    ranks.engines[0].no_room = ranks.engines[1].reading = True
    ranks.leader.add(1, [1], GREEDY)
    assert [error.id for error in ranks.leader.step().errors] == [1]
    ranks.leader.add(2, [1], GREEDY)
    ranks.leader.step()
    ranks.join()
    (failure,) = ranks.failures
    assert isinstance(failure, EngineError)
    assert "a sequence failed on rank 0 or on this rank only" in str(failure)
    assert len(ranks.engines[1].steps) == 1, "their batches differ: together they would compute nonsense, or wait for each other"


def test_a_sequence_that_fails_on_all_ranks_ends_none() -> None:
    ranks = Ranks()
    for engine in ranks.engines:
        engine.no_room = True
    ranks.leader.add(1, [1], GREEDY)
    ranks.leader.step()
    ranks.leader.add(2, [1], GREEDY)
    ranks.leader.step()
    ranks.leader.close(5.0)
    ranks.join()
    assert ranks.failures == []
    assert len(ranks.engines[1].steps) == 2


def test_the_end_is_told_once_and_frees_the_engine() -> None:
    ranks = Ranks()
    ranks.leader.close(5.0)
    ranks.join()
    assert ranks.failures == []
    assert ranks.engines[0].closed
    assert not ranks.engines[1].closed, "its own process does that"


class Broken(RankLink):
    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = 0

    def broadcast(self, message: bytes) -> bytes:
        self.asked += 1
        raise self.error


def test_a_lost_link_is_the_engine_s_failure_and_nobody_is_told_of_the_end() -> None:
    engine, link = Recording(), Broken(OSError("connection reset"))
    leader = Leader(engine, link)
    leader.add(1, [1], GREEDY)
    with pytest.raises(EngineError, match="the link to the other ranks failed: connection reset"):
        leader.step()
    leader.close(5.0)
    assert (link.asked, engine.closed) == (1, True)


def test_a_link_that_is_lost_at_the_end_keeps_nobody() -> None:
    engine, link = Recording(), Broken(OSError("connection reset"))
    Leader(engine, link).close(5.0)
    assert (link.asked, engine.closed) == (1, True)


def test_a_link_that_waits_at_the_end_keeps_nobody_beyond_the_grace() -> None:
    engine, waits = Recording(), threading.Event()

    class Waiting(RankLink):
        def broadcast(self, message: bytes) -> bytes:
            waits.wait(10)
            return message

    Leader(engine, Waiting()).close(0.01)
    assert engine.closed
    waits.set()


def test_a_follower_whose_link_is_cut_raises() -> None:
    ranks = Ranks()
    ranks.wires[0].inbox.put(None)
    ranks.join()
    assert [str(failure) for failure in ranks.failures] == ["the wire is cut"]


@pytest.mark.parametrize("name", ["tokenizer", "default_sampling"])
def test_the_leader_is_as_its_engine(name: str) -> None:
    ranks = Ranks()
    leader, engine = ranks.leader, ranks.engines[0]
    found: Any = getattr(leader, name)
    assert type(found) is type(getattr(engine, name))
    assert leader.has_capacity()
    leader.add(1, [1], GREEDY)
    assert leader.stats().running == 1
    leader.check()
    leader.close(1.0)
    ranks.join()
