"""The desired state: the launches that users want, kept over the supervisor's lives. What runs is never kept: workers tell it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Mapping

import msgspec

from xi_core.cluster.launches import Wanted
from xi_core.cluster.store import Store
from xi_core.cluster.threads import in_thread

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Wanted).decode


class Desired:
    """Writes down what is wanted, each time that it has changed: on a thread, for a disk that is busy may take a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._wanted: Mapping[str, Wanted] = {}
        self._kept: Mapping[str, Wanted] = {}
        """What the store has."""
        self._keeping: asyncio.Future[None] | None = None

    def restore(self) -> list[Wanted]:
        """What was wanted when the last supervisor ended. A launch that can't be read, of a newer xi, is forgotten."""
        found: dict[str, Wanted] = {}
        for blob in self._store.launches():
            try:
                wanted = _decode(blob)
            except msgspec.DecodeError as error:
                log.warning("a launch of a former life of this supervisor can't be read and is forgotten: %s", error)
                continue
            found[wanted.uid] = wanted
        self._kept = self._wanted = found
        return list(found.values())

    def forget_all(self) -> None:
        """Begin without anything wanted."""
        self._store.keep_launches([], [wanted.uid for wanted in self.restore()])
        self._kept = self._wanted = {}

    def keep(self, wanted: Iterable[Wanted]) -> None:
        """This is all that is wanted now; `kept` tells when it is written down. A disk that can't be is logged: what runs goes on."""
        now, writing = {one.uid: one for one in wanted}, self._keeping is not None and not self._keeping.done()
        same = now.keys() == self._wanted.keys() and all(now[uid] is known for uid, known in self._wanted.items())
        if same and (writing or self._kept is self._wanted):
            return
        self._wanted = now
        if not writing:
            self._keeping = asyncio.ensure_future(self._keep())

    async def kept(self) -> None:
        """Wait until what is wanted now is written down, or can't be."""
        if self._keeping is not None:
            await asyncio.shield(self._keeping)

    async def _keep(self) -> None:
        while (target := self._wanted) is not self._kept:
            before = self._kept
            put = [(uid, _encode(one)) for uid, one in target.items() if before.get(uid) is not one]
            dropped = before.keys() - target.keys()
            try:
                await in_thread(lambda put=put, dropped=dropped: self._store.keep_launches(put, dropped))  # type: ignore[misc]
            except sqlite3.Error as error:
                log.error("what is wanted can't be written to %s (%s); a restart now would not know of it", self._store.path, error)
                return
            self._kept = target
