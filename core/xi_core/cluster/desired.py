"""The desired state: the launches that users want, kept over the supervisor's lives. What runs is never kept: workers tell it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable

import msgspec

from xi_core.cluster.launches import Wanted
from xi_core.cluster.store import Store

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Wanted).decode


class Desired:
    """Writes down what is wanted, each time that it has changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Wanted] = {}

    def restore(self) -> list[Wanted]:
        """What was wanted when the last supervisor ended. A launch that can't be read, of a newer xi, is forgotten."""
        for blob in self._store.launches():
            try:
                wanted = _decode(blob)
            except msgspec.DecodeError as error:
                log.warning("a launch of a former life of this supervisor can't be read and is forgotten: %s", error)
                continue
            self._known[wanted.uid] = wanted
        return list(self._known.values())

    def forget_all(self) -> None:
        """Begin without anything wanted."""
        for wanted in self.restore():
            self._store.drop_launch(wanted.uid)
        self._known = {}

    def keep(self, wanted: Iterable[Wanted]) -> None:
        """This is all that is wanted now. A disk that can't be written is logged: what runs goes on."""
        now = {one.uid: one for one in wanted}
        if now.keys() == self._known.keys() and all(now[uid] is known for uid, known in self._known.items()):
            return
        try:
            for uid in self._known.keys() - now.keys():
                self._store.drop_launch(uid)
            for uid, one in now.items():
                if self._known.get(uid) is not one:
                    self._store.put_launch(uid, _encode(one))
        except sqlite3.Error as error:
            log.error("what is wanted can't be written to %s (%s); a restart now would not know of it", self._store.path, error)
            return
        self._known = now
