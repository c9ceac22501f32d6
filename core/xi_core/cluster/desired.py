"""The desired state: the launches that users want and the workers that they drained, kept over the supervisor's lives.

What runs is never kept: workers tell it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from xi_core.cluster.deadlines import KEPT
from xi_core.cluster.launches import Wanted
from xi_core.cluster.store import Store
from xi_core.cluster.threads import in_thread

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Wanted).decode


@dataclass(frozen=True, eq=False)
class _State:
    """All that is desired."""

    launches: Mapping[str, Wanted] = field(default_factory=dict)
    drains: Mapping[str, float] = field(default_factory=dict)
    """By worker, as `Lifecycle.drains` on this process's steady clock."""


class Desired:
    """Writes down what is wanted, each time that it has changed: on a thread, for a disk that is busy may take a second."""

    def __init__(self, store: Store) -> None:
        """The drains of former lives are read at once, the launches by `restore`."""
        self._store = store
        since = time.monotonic() - time.time()
        self._wanted = self._kept = _State(drains={worker: until + since for worker, until in store.drains().items()})
        """What is desired, and what of it the store has."""
        self.ended = store.ended(time.time() - KEPT)
        """To be read only: the launches that ended before this start, each by its uid and when it was created. Workers that were away may
        still run them."""
        self._keeping: asyncio.Future[None] | None = None
        for worker in self.drains:
            log.warning("worker %s is drained, since before this start; `xi drain %s --undo` lets it take replicas again", worker, worker)

    @property
    def drains(self) -> Mapping[str, float]:
        """The workers that are drained, each with the time at which what is left on it ends, by `time.monotonic`."""
        return self._wanted.drains

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
        self._kept = self._wanted = replace(self._kept, launches=found)
        return list(found.values())

    def forget_all(self) -> None:
        """Begin without any launch. Workers that are drained stay so: that is said of machines, not of what runs."""
        forgotten = self.restore()
        self.ended |= _ids(forgotten)
        self._store.keep_ended(_ids(forgotten), (), time.time() - KEPT)
        self._store.keep_launches([], [wanted.uid for wanted in forgotten])
        self._kept = self._wanted = replace(self._kept, launches={})

    def keep(self, wanted: Iterable[Wanted], drains: Mapping[str, float]) -> None:
        """This is all that is desired now; `kept` tells when it is written down. A disk that can't be is logged: what runs goes on."""
        now, before, writing = {one.uid: one for one in wanted}, self._wanted, self._keeping is not None and not self._keeping.done()
        same = now.keys() == before.launches.keys() and all(now[uid] is known for uid, known in before.launches.items())
        if same and drains == before.drains and (writing or self._kept is before):
            return
        self._wanted = _State(now, dict(drains))
        if not writing:
            self._keeping = asyncio.ensure_future(self._keep())

    async def kept(self) -> None:
        """Wait until what is desired now is written down, or can't be."""
        if self._keeping is not None:
            await asyncio.shield(self._keeping)

    async def _keep(self) -> None:
        while (target := self._wanted) is not self._kept:
            try:
                await in_thread(partial(self._write, self._kept, target))
            except sqlite3.Error as error:
                log.error("what is wanted can't be written to %s (%s); a restart now would not know of it", self._store.path, error)
                return
            self._kept = target

    def _write(self, before: _State, target: _State) -> None:
        """On a thread. Each drain's end by the clock on the wall, for the steady one begins anew with the machine."""
        was, now = _ids(before.launches.values()), _ids(target.launches.values())
        if was != now:
            self._store.keep_ended(was - now, now - was, time.time() - KEPT)
        put = [(uid, _encode(one)) for uid, one in target.launches.items() if before.launches.get(uid) is not one]
        self._store.keep_launches(put, before.launches.keys() - target.launches.keys())
        if target.drains != before.drains:
            since = time.time() - time.monotonic()
            self._store.keep_drains({worker: by + since for worker, by in target.drains.items()})


def _ids(launches: Iterable[Wanted]) -> set[tuple[str, int]]:
    """What tells launches from others of the same uid."""
    return {(one.uid, one.created) for one in launches}
