"""What a supervisor must not forget: which launches are wanted or have just ended, which workers are drained, its keys, who may join,
tokens that are out, and how often it was started.
SQLite at `XI_HOME/cluster/state.db`, readable by its owner only, and of one supervisor at a time.

What runs is never stored: workers tell it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from xi_core.api.control import MemberRole
from xi_core.errors import Conflict, Forbidden, Unavailable
from xi_core.transport.security import KeyPair

_TABLES = """
CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, public TEXT NOT NULL, secret TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (
    key TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, joined REAL NOT NULL, UNIQUE (role, name)
);
CREATE TABLE IF NOT EXISTS struck (key TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tokens (hash TEXT PRIMARY KEY, role TEXT NOT NULL, expires REAL NOT NULL, used_by TEXT);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS launches (uid TEXT PRIMARY KEY, wanted BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS ended (uid TEXT NOT NULL, created INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (uid, created));
CREATE TABLE IF NOT EXISTS drains (worker TEXT PRIMARY KEY, until REAL NOT NULL);
"""
"""A database of an older xi gets the tables that it lacks; a newer one's that are unknown here are left as they are."""
KEPT = 7 * 24 * 3600.0
"""Seconds for which an expired token is remembered, so that who comes with it is told why it is refused."""


class Entry(Struct, frozen=True):
    """One line of the allow-list."""

    role: MemberRole
    name: str


class Kept(Struct, frozen=True):
    """A line of the allow-list as it is kept."""

    entry: Entry
    joined: float
    """When its key came there, in seconds since 1970."""


class Store:
    """The database. Every method is one transaction, on any thread. What writes may wait for the disk: not on the supervisor's loop."""

    def __init__(self, home: Path) -> None:
        """Open or make the one of this XI_HOME. Raises `Unavailable` where it can't be, `Conflict` where another supervisor has it."""
        self.path = home / "cluster" / "state.db"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _locked(self.path.with_suffix(".lock"))
            self._turn = threading.RLock()
            """Held by the thread that is at the database."""
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # SQLite gives its other files the mode of this one
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            # No wait for the disk at each commit: a kill loses nothing, a power cut the last words at most.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"the supervisor's memory {self.path} can't be opened: {error}; XI_HOME says where it is") from None
        members = self._db.execute("SELECT key, role, name FROM members")
        self._allowed: dict[str, Entry] = {key: Entry(role, name) for key, role, name in members}
        self._struck: dict[str, Entry] = {
            key: Entry(role, name) for key, role, name in self._db.execute("SELECT key, role, name FROM struck")
        }

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._db.close()
        os.close(self._lock)

    # ---- launches -------------------------------------------------------------------------------

    def launches(self) -> list[bytes]:
        """What was put, the oldest first."""
        with self._turn:
            return [bytes(row[0]) for row in self._db.execute("SELECT wanted FROM launches ORDER BY rowid")]

    def keep_launches(self, put: Iterable[tuple[str, bytes]], dropped: Iterable[str]) -> None:
        """Remember launches by uid, each in the place of what is remembered of it, and forget others. Raises `sqlite3.Error`."""
        update = "INSERT INTO launches VALUES (?, ?) ON CONFLICT (uid) DO UPDATE SET wanted = excluded.wanted"
        with self._transaction():
            self._db.executemany("DELETE FROM launches WHERE uid = ?", ((uid,) for uid in dropped))
            self._db.executemany(update, put)

    def ended(self, since: float) -> set[tuple[str, int]]:
        """The launches that have ended since then, in seconds since 1970: each by its uid and when it was created."""
        with self._turn:
            return set(self._db.execute("SELECT uid, created FROM ended WHERE at >= ?", (since,)))

    def keep_ended(self, ended: Iterable[tuple[str, int]], wanted: Iterable[tuple[str, int]], since: float) -> None:
        """Remember that these launches end now, and that others are wanted; forget what ended before `since`. Raises `sqlite3.Error`."""
        with self._transaction():
            self._db.execute("DELETE FROM ended WHERE at < ?", (since,))
            self._db.executemany("DELETE FROM ended WHERE uid = ? AND created = ?", wanted)
            self._db.executemany("INSERT OR REPLACE INTO ended VALUES (?, ?, ?)", ((*one, time.time()) for one in ended))

    def drains(self) -> dict[str, float]:
        """By name, the workers that are drained, each with the time by which it is to be empty, in seconds since 1970."""
        with self._turn:
            return dict(self._db.execute("SELECT worker, until FROM drains"))

    def keep_drains(self, drains: Mapping[str, float]) -> None:
        """Remember that just these workers are drained. Raises `sqlite3.Error`."""
        with self._transaction():
            self._db.execute("DELETE FROM drains")
            self._db.executemany("INSERT INTO drains VALUES (?, ?)", drains.items())

    # ---- epochs and keys ------------------------------------------------------------------------

    def next_epoch(self) -> int:
        """A number larger than at any start before. Raises `Unavailable` where it can't be written down."""
        try:
            with self._transaction():
                self._db.execute("INSERT INTO counters VALUES ('epoch', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1")
                return int(self._db.execute("SELECT value FROM counters WHERE name = 'epoch'").fetchone()[0])
        except sqlite3.Error as error:
            raise Unavailable(f"the supervisor's memory {self.path} can't be written: {error}; XI_HOME says where it is") from None

    def keys(self, name: str) -> KeyPair:
        """The key pair of this name, made when it is first asked for."""
        fresh = KeyPair.new()
        with self._turn:
            self._db.execute("INSERT OR IGNORE INTO keys VALUES (?, ?, ?)", (name, fresh.public, fresh.secret))
            return KeyPair(*self._db.execute("SELECT public, secret FROM keys WHERE name = ?", (name,)).fetchone())

    def older_keys(self, name: str) -> list[KeyPair]:
        """The key pairs that this name had before, as far as they are kept."""
        with self._turn:
            rows = self._db.execute("SELECT public, secret FROM keys WHERE name = ? || '.' || public ORDER BY rowid", (name,))
            return [KeyPair(*row) for row in rows]

    def replace_keys(self, name: str, used: Iterable[str]) -> KeyPair:
        """A new key pair for this name. Of the older ones those are kept whose public keys are `used`."""
        fresh, kept = KeyPair.new(), set(used)
        with self._transaction():
            self._db.execute("UPDATE keys SET name = name || '.' || public WHERE name = ?", (name,))
            unused = [old.public for old in self.older_keys(name) if old.public not in kept]
            self._db.executemany("DELETE FROM keys WHERE name = ? || '.' || ?", ((name, public) for public in unused))
            self._db.execute("INSERT INTO keys VALUES (?, ?, ?)", (name, fresh.public, fresh.secret))
        return fresh

    # ---- the allow-list -------------------------------------------------------------------------

    def entry(self, key: str) -> Entry | None:
        """Whose key this is; None where nobody's is on the list."""
        return self._allowed.get(key)

    def struck(self, key: str) -> Entry | None:
        """Whose key this was, that was taken off the list."""
        return self._struck.get(key)

    def entries(self, role: MemberRole) -> list[str]:
        """The names of those who may join in this role."""
        return sorted(entry.name for entry in self._allowed.values() if entry.role == role)

    def key_of(self, role: MemberRole, name: str) -> str | None:
        """The key that is bound to a name."""
        return next((key for key, entry in self._allowed.items() if entry == Entry(role, name)), None)

    def members(self) -> list[Kept]:
        """The whole list, workers before gateways."""
        with self._turn:
            rows = self._db.execute("SELECT role, name, joined FROM members ORDER BY role DESC, name")
            return [Kept(Entry(role, name), joined) for role, name, joined in rows]

    def strike(self, entry: Entry) -> str | None:
        """Take somebody off the list, and make the tokens useless that were used with the same key. Answers the key; None: nobody's.

        The key is remembered, so that who comes with it can be told.
        """
        key = self.key_of(entry.role, entry.name)
        if key is None:
            return None
        with self._turn:
            with self._transaction():
                self._db.execute("DELETE FROM members WHERE key = ?", (key,))
                self._db.execute("DELETE FROM tokens WHERE used_by = ?", (key,))
                self._db.execute("INSERT OR REPLACE INTO struck VALUES (?, ?, ?)", (key, entry.role, entry.name))
            self._allowed = {old: other for old, other in self._allowed.items() if old != key}
            self._struck = {**self._struck, key: entry}
        return key

    # ---- tokens ---------------------------------------------------------------------------------

    def add_token(self, secret: bytes, role: MemberRole, expires: float) -> None:
        """Remember the hash of a token's secret. `expires`: seconds since 1970."""
        with self._transaction():
            self._db.execute("DELETE FROM tokens WHERE expires < ?", (time.time() - KEPT,))
            self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, NULL)", (_hash(secret), role, expires))

    def check_token(self, secret: bytes, role: MemberRole, key: str) -> None:
        """Raises `Forbidden` unless the owner of `key` may join with this token: a fresh one, or the one that it has used itself."""
        with self._turn:
            row = self._db.execute("SELECT role, expires, used_by FROM tokens WHERE hash = ?", (_hash(secret),)).fetchone()
        if row is None:
            raise Forbidden("this join token is not known to the supervisor (any more); make another with `xi join-token`", param="token")
        made_for, expires, used_by = row
        if made_for != role:
            more = f"make one with `xi join-token --role {role}`"
            raise Forbidden(f"this join token is for a {made_for}, not for a {role}; {more}", param="token")
        if used_by is not None and used_by != key:
            raise Forbidden("this join token has been used already; make another with `xi join-token`", param="token")
        if used_by is None and expires < time.time():
            raise Forbidden("this join token has expired; make another with `xi join-token`", param="token")

    def redeem(self, secret: bytes, role: MemberRole, name: str, key: str) -> None:
        """Bind `key` to `name`, in the place of the key that the name had, and make the token useless to others. Raises `Forbidden`."""
        with self._turn:
            with self._transaction():
                self.check_token(secret, role, key)
                self._db.execute("UPDATE tokens SET used_by = ? WHERE hash = ?", (key, _hash(secret)))
                self._db.execute("DELETE FROM members WHERE role = ? AND name = ? OR key = ?", (role, name, key))
                self._db.execute("INSERT INTO members VALUES (?, ?, ?, ?)", (key, role, name, time.time()))
                self._db.execute("DELETE FROM struck WHERE key = ?", (key,))
            self._struck = {old: other for old, other in self._struck.items() if old != key}
            entry = Entry(role, name)
            self._allowed = {old: other for old, other in self._allowed.items() if other != entry and old != key} | {key: entry}

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db, self._turn)


class _Transaction:
    """BEGIN IMMEDIATE; COMMIT at the end of the block, ROLLBACK where it raises."""

    def __init__(self, db: sqlite3.Connection, turn: threading.RLock) -> None:
        self._db, self._turn = db, turn

    def __enter__(self) -> None:
        self._turn.acquire()
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._turn.release()
            raise

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
            elif self._db.in_transaction:  # of a full disk SQLite rolls back by itself
                self._db.execute("ROLLBACK")
        finally:
            self._turn.release()


def _locked(path: Path) -> int:
    """A descriptor that holds the lock, which the system releases when this process is gone. Raises `Conflict`."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Conflict(f"another supervisor uses {path.parent}; stop it, or give this one a folder of its own with XI_HOME") from None
    return descriptor


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
