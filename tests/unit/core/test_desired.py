"""What is wanted is written down beside the loop, whole and in order, however slow the disk is."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xi_core.api.control import LaunchSpec
from xi_core.cluster.desired import Desired
from xi_core.cluster.launches import Wanted
from xi_core.cluster.store import Entry, Store
from xi_core.models.family import ModelSpec, SourceRef


def wanted(uid: str, replica: int = 1) -> Wanted:
    model = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="x"))
    return Wanted(uid=uid, spec=LaunchSpec(model_name="toy", model_uid=uid, replica=replica), model=model, engine="e", n_gpu=0, created=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.close()


async def test_a_slow_disk_does_not_hold_up_the_loop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, writes, keep = threading.Event(), [], store.keep_launches

    def held(put: Any, dropped: Any) -> None:
        writes.append(sorted(uid for uid, _ in put))
        assert slow.wait(10)
        keep(put, dropped)

    monkeypatch.setattr(store, "keep_launches", held)
    desired = Desired(store)
    one, two, three = wanted("a"), wanted("b"), wanted("a", 3)
    desired.keep([one], {})
    kept = asyncio.ensure_future(desired.kept())
    await asyncio.sleep(0)
    desired.keep([one, two], {})  # both come back at once
    desired.keep([two, three], {})
    assert not kept.done()
    slow.set()
    await asyncio.wait_for(kept, 10)
    await asyncio.wait_for(desired.kept(), 10)
    assert writes == [["a"], ["a", "b"]], "what came in between is written at once"
    assert sorted((w.uid, w.spec.replica) for w in Desired(store).restore()) == [("a", 3), ("b", 1)]


async def test_what_is_wanted_no_more_is_forgotten_and_what_failed_is_written_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    desired, keep = Desired(store), store.keep_launches
    one, two = wanted("a"), wanted("b")
    desired.keep([one, two], {})
    await desired.kept()

    def full(put: Any, dropped: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "keep_launches", full)
    desired.keep([two], {})
    await desired.kept()
    assert [w.uid for w in Desired(store).restore()] == ["a", "b"]
    monkeypatch.setattr(store, "keep_launches", keep)
    desired.keep([two], {})  # nothing has changed since
    await desired.kept()
    assert [w.uid for w in Desired(store).restore()] == ["b"]
    desired.forget_all()
    assert Desired(store).restore() == []


async def test_that_a_launch_was_ready_is_written_down_and_unknown_of_those_of_an_older_xi(store: Store) -> None:
    desired, begun = Desired(store), msgspec.structs.replace(wanted("a"), was_ready=False)
    for one in (begun, msgspec.structs.replace(begun, was_ready=True)):
        desired.keep([one], {})
        await desired.kept()
        assert Desired(store).restore() == [one]
    (blob,) = store.launches()
    older = msgspec.msgpack.decode(blob)
    del older["was_ready"]
    store.keep_launches([("a", msgspec.msgpack.encode(older))], [])
    assert [one.was_ready for one in Desired(store).restore()] == [None]


async def test_what_has_ended_is_known_to_the_next_supervisor(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    desired = Desired(store)
    desired.keep([wanted("a"), wanted("b"), wanted("c")], {})
    await desired.kept()
    desired.keep([wanted("b", 3), msgspec.structs.replace(wanted("c"), created=2)], {})  # scaled, and launched anew
    await desired.kept()
    assert Desired(store).ended == {("a", 1), ("c", 1)}
    desired.keep([wanted("a"), wanted("b", 3)], {})  # launched anew within the same second, or taken over from a worker after all
    await desired.kept()
    again = Desired(store)
    assert again.ended == {("c", 1), ("c", 2)}
    known = again.ended
    again.forget_all()
    assert known == Desired(store).ended == {("a", 1), ("b", 1), ("c", 1), ("c", 2)}
    monkeypatch.setattr("xi_core.cluster.desired.KEPT", -1.0)
    assert Desired(store).ended == set(), "a worker that comes back later than that is believed"


def test_threads_take_turns_at_the_store(store: Store) -> None:
    """One in the middle of its transaction, others come: neither joins it."""
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for turn in range(40):
                secret = f"{number}-{turn}".encode()
                store.add_token(secret, "worker", 2e9)
                store.redeem(secret, "worker", f"w{number}", f"key-{number}")
                store.keep_launches([(f"{number}", secret)], [])
                assert store.strike(Entry("worker", f"w{number}")) == f"key-{number}"
                assert store.struck(f"key-{number}") == Entry("worker", f"w{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert store.members() == []
    assert len(store.launches()) == 4
