"""The supervisor's store on a full disk: the true reason is told, and memory is as the disk is."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xi_core.cluster.store import Entry, Store
from xi_core.errors import Unavailable


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Store]:
    """A store with a token and a member, and no room for more."""
    store = Store(tmp_path)
    store.add_token(b"first", "worker", time.time() + 60)
    store.redeem(b"first", "worker", "w1", "key-1")
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    yield store
    store.close()


def test_a_full_disk_is_told_as_one_and_changes_nothing(full: Store) -> None:
    with pytest.raises(sqlite3.OperationalError, match="full"), full._transaction():
        full._db.execute("INSERT INTO keys VALUES (?, ?, ?)", ("x", "y" * 100_000, "z"))
    assert not full._db.in_transaction
    assert full.entry("key-1") == Entry("worker", "w1")


def test_an_epoch_that_can_not_be_written_down_is_told_with_its_place(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    full._db.execute("PRAGMA query_only = 1")
    with pytest.raises(Unavailable, match=r"state\.db can't be written: .*XI_HOME"):
        full.next_epoch()


def test_a_member_that_is_struck_off_is_so_in_memory_too(full: Store) -> None:
    assert full.strike(Entry("worker", "w1")) == "key-1"
    assert full.entry("key-1") is None
    assert full.struck("key-1") == Entry("worker", "w1")
    assert full.strike(Entry("worker", "w1")) is None
