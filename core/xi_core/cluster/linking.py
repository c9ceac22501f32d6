"""A worker's side of its conversation with the supervisor: dial, say who this is and what runs here, dial again when the link is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from msgspec import Struct

from xi_core.cluster.messages import ANSWERS, NOTICES, Register, Registered
from xi_core.errors import ChannelRefused, Conflict, Forbidden, ProtocolMismatch, TransportError, XiError
from xi_core.transport.base import Transport
from xi_core.transport.rpc import Calls, Link, dial
from xi_core.transport.security import ClientSecurity
from xi_core.transport.vocabulary import Vocabulary

log = logging.getLogger(__name__)

VOCABULARY = Vocabulary(ANSWERS, NOTICES)
REDIAL_FIRST, REDIAL_MOST = 0.1, 1.0
REGISTER_TIMEOUT = 5.0
SAY = 5.0
"""Seconds between words about a supervisor that can't be reached."""
CONFLICT = 4.0
"""Seconds for which a worker's name may be taken at its start: a former life of it may still be thought to live."""
REFUSALS = (ChannelRefused, Conflict, Forbidden, ProtocolMismatch)


class SupervisorLink:
    """Keeps a worker registered. One that has been in once stays, whatever becomes of the supervisor: replicas of it serve.

    Only if the supervisor says that it was removed from the cluster it ends.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: str,
        security: ClientSecurity | None,
        calls: Calls,
        introduce: Callable[[], tuple[Register, Callable[[], None]]],
        away: Callable[[], None],
    ) -> None:
        """`introduce` gives what to register, and what to call once the supervisor knows it; `away` is called when a link is lost."""
        self.registered = asyncio.Event()
        """Set while the supervisor knows this worker."""
        self.refused = asyncio.Event()
        """Set when the supervisor doesn't let it in at its start, or has removed it; `refusal` says why."""
        self.refusal: XiError | None = None
        self._transport, self._endpoint, self._security, self._calls = transport, endpoint, security, calls
        self._introduce, self._away = introduce, away
        self._link: Link | None = None
        self._introduced = False
        """Whether the supervisor has been told on this link who this is: what is said next comes after it."""
        self._was_in = False
        self._began = self._said_at = time.monotonic()
        self._warned: list[str] = []

    async def keep(self) -> None:
        """Stay registered, until cancelled."""
        wait = REDIAL_FIRST
        while not self.refused.is_set():
            try:
                link = dial(self._transport, self._endpoint, VOCABULARY, self._calls, lambda: None, self._security)
                try:
                    self._link = link
                    again = self._was_in
                    await self.register()
                    if again:
                        log.info("connected to the supervisor again")
                    wait = REDIAL_FIRST
                    await link.closed.wait()
                    log.warning("the supervisor is away; replicas go on serving")
                    self._said_at = time.monotonic()
                finally:
                    self._link, self._introduced = None, False
                    self._away()
                    self.registered.clear()
                    await link.close()
            except XiError as error:
                self._tell(error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, REDIAL_MOST)

    async def register(self) -> None:
        """Tell who this is and what it runs, where there is a link. Raises the supervisor's error, or a `TransportError`."""
        if self._link is None:
            return
        command, done = self._introduce()
        self._introduced = True
        answer: Registered = await self._link.call(command, timeout=REGISTER_TIMEOUT)
        done()
        if answer.warnings != self._warned:
            self._warned = answer.warnings
            for difference in answer.warnings:
                log.warning("unlike the supervisor, this worker %s", difference)
        self._was_in = True
        self.registered.set()

    async def call(self, command: Struct, timeout: float) -> None:
        """Ask the supervisor for something, if it is there. Raises its error, or a `TransportError`."""
        if self._link is not None:
            await self._link.call(command, timeout=timeout)

    def notify(self, notice: Struct, *, introduced: bool = True) -> bool:
        """Tell the supervisor, if it is there: registering again will tell it the rest. `introduced`: not before it knows who speaks."""
        if self._link is None or (introduced and not self._introduced):
            return False
        try:
            self._link.notify(notice)
        except TransportError:
            return False
        return True

    async def close(self) -> None:
        """Hang up."""
        if self._link is not None:
            await self._link.close()

    def _tell(self, error: XiError) -> None:
        """Why there is no link. At the start a refusal is final, and that it is a member no more is final at any time."""
        now = time.monotonic()
        final = isinstance(error, REFUSALS) and not (isinstance(error, Conflict) and now - self._began < CONFLICT)
        if (final and not self._was_in) or isinstance(error, Forbidden):
            self.refusal = error
            self.refused.set()
        elif now - self._said_at >= SAY:
            self._said_at = now
            log.warning("no link to the supervisor at %s, trying on: %s", self._endpoint, error)
        else:
            log.debug("no link to the supervisor: %s", error)
