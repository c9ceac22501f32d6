"""The gateway's side of its conversation with the supervisor: dial, subscribe to the routing table, dial again when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from xi_core.cluster.messages import (
    ANSWERS,
    OF_GATEWAYS,
    Done,
    GatewayKeys,
    Launch,
    Scale,
    Shutdown,
    Subscribe,
    Subscribed,
    TableUpdate,
    Terminate,
)
from xi_core.errors import ChannelClosed, DeadlineExceeded, Forbidden, InvalidRequest, TransportError, Unavailable, XiError
from xi_core.transport.base import Transport
from xi_core.transport.rpc import Calls, Link, Vocabulary, dial
from xi_core.transport.security import ClientSecurity, KeyPair
from xi_server.table import RoutingTable

log = logging.getLogger(__name__)

REDIAL_FIRST = 0.1
REDIAL_MOST = 2.0
SUBSCRIBE_TIMEOUT = 5.0
PATIENCE = 5.0
"""Longest wait, in seconds, for a supervisor that is starting."""
CHANGES = (Launch, Scale, Terminate)
"""What is worth waiting for."""
REPEATED = (Launch, Scale)
"""What may be asked for twice: the second time nothing happens. A second `Terminate` would end what was launched under the name since."""
AWAY = "the supervisor is away; models that run go on serving, launching waits until it is back"
UNSURE = "the supervisor is away; what was asked for may be done already, ask again in a moment"

VOCABULARY = Vocabulary({command: ANSWERS[command] for command in OF_GATEWAYS} | {Shutdown: Done}, [TableUpdate, GatewayKeys])


class SupervisorClient:
    """Keeps a link to the supervisor at `endpoint` and feeds `table` from it."""

    def __init__(self, transport: Transport, endpoint: str, table: RoutingTable, name: str, security: ClientSecurity | None = None) -> None:
        """`security`: where the supervisor knows this gateway by its key."""
        self._keys: KeyPair | None = None
        self._keys_by_public: dict[str, KeyPair] = {}
        """What replicas on other machines want to be shown; the supervisor gives them."""
        self.on_removed: Callable[[XiError], None] = lambda error: None
        """Called once, when the supervisor says that this gateway is a member of the cluster no more."""
        self.on_stop: Callable[[], None] = lambda: None
        """Called when the supervisor tells this gateway to stop: the whole cluster is being stopped."""
        self._removed = False
        self._security = security
        self.subscribed = asyncio.Event()
        """Set while the table is up to date."""
        self._transport = transport
        self._endpoint = endpoint
        self._table = table
        self._name = name
        self._link: Link | None = None
        self._stale = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def data_keys(self, public: str) -> KeyPair | None:
        """The keys that a replica on another machine wants to be shown; None as long as the supervisor hasn't told them."""
        return self._keys_by_public.get(public) if public else self._keys

    def start(self) -> None:
        """Begin to dial."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def _calls(self) -> Calls:
        return {TableUpdate: self._update, GatewayKeys: self._new_keys, Shutdown: self._shutdown}

    async def close(self) -> None:
        """Hang up and dial no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._link is not None:
            await self._link.close()

    async def call(self, command: Struct, timeout: float | None = 30.0) -> Any:
        """The supervisor's answer; without a `timeout`, however long it takes. Raises its error, `Unavailable` while it is away, and
        `InvalidRequest` for a number that no message can carry.

        What is `REPEATED` is asked for again where the link was lost before the answer: a launch of the same spec is the same launch.
        """
        try:
            return await self._ask(command, timeout)
        except ChannelClosed as error:
            if not isinstance(command, REPEATED):
                raise _away(error, command) from None
        try:
            return await self._ask(command, timeout)
        except ChannelClosed as error:
            raise _away(error, command) from None

    async def _ask(self, command: Struct, timeout: float | None) -> Any:
        """As `call`, once. Raises `ChannelClosed` where the link is lost meanwhile."""
        if self._worth_waiting(command):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.subscribed.wait(), PATIENCE)
        link = self._link
        if link is None or not self.subscribed.is_set():
            raise Unavailable(AWAY, retry_after=1.0)
        try:
            return await link.call(command, timeout=timeout)
        except OverflowError:
            raise InvalidRequest("the request holds a number that is too large: whole numbers have 64 bits at most") from None
        except DeadlineExceeded as error:
            raise Unavailable(error.message, retry_after=1.0) from None
        except ChannelClosed as error:
            if not link.closed.is_set():  # it is the supervisor that has lost somebody, a worker
                raise Unavailable(error.message, retry_after=1.0) from None
            raise

    def _worth_waiting(self, command: Struct) -> bool:
        """Reads fall back on the table, once there has been one; what changes something is worth a moment, for a start or a restart."""
        return not self.subscribed.is_set() and (isinstance(command, CHANGES) or not self._table.epoch)

    async def _keep(self) -> None:
        wait = REDIAL_FIRST
        while not self._removed:
            if await self._converse():
                wait = REDIAL_FIRST
            await asyncio.sleep(wait)
            wait = min(2 * wait, REDIAL_MOST)

    async def _converse(self) -> bool:
        """One link from dialling to its end. True if it came to a subscription."""
        try:
            link = self._link = dial(self._transport, self._endpoint, VOCABULARY, self._calls(), self.subscribed.clear, self._security)
        except TransportError as error:
            log.warning("the supervisor at %s can't be reached: %s", self._endpoint, error)
            return False
        try:
            return await self._follow(link)
        finally:
            self.subscribed.clear()
            self._link = None
            await link.close()

    async def _follow(self, link: Link) -> bool:
        """Subscribe, again whenever an update was missed, until the link is lost."""
        subscribed = False
        closed = asyncio.create_task(link.closed.wait())
        try:
            while not link.closed.is_set():
                self._stale.clear()
                try:
                    answer: Subscribed = await link.call(Subscribe(self._name, os.getpid()), timeout=SUBSCRIBE_TIMEOUT)
                except XiError as error:
                    log.warning("no routing table from the supervisor: %s", error)
                    if isinstance(error, Forbidden):
                        self._removed = True
                        self.on_removed(error)
                    return subscribed
                if answer.keys is not None:
                    self._take_keys(answer.keys, answer.older)
                if not subscribed:
                    log.info("connected to the supervisor")
                subscribed = True
                self.subscribed.set()
                await self._until_stale(closed)
        finally:
            closed.cancel()
        log.warning("the supervisor is away; serving from the last routing table")
        return subscribed

    async def _until_stale(self, closed: asyncio.Task[bool]) -> None:
        stale = asyncio.create_task(self._stale.wait())
        try:
            await asyncio.wait([closed, stale], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stale.cancel()

    async def _shutdown(self, command: Shutdown) -> Done:
        self.on_stop()
        return Done()

    async def _new_keys(self, notice: GatewayKeys) -> None:
        self._take_keys(notice.keys, notice.older)

    def _take_keys(self, keys: KeyPair, older: list[KeyPair]) -> None:
        self._keys, self._keys_by_public = keys, {pair.public: pair for pair in (keys, *older)}

    async def _update(self, update: TableUpdate) -> None:
        if not self._table.apply(update):
            log.info("routing table %s/%d can't follow %s/%d; asking for all of it", update.epoch, update.version,
                     self._table.epoch, self._table.version)  # fmt: skip
            self._stale.set()


def _away(error: XiError, command: Struct) -> Unavailable:
    return Unavailable(f"{UNSURE if isinstance(command, CHANGES) else AWAY} ({error})", retry_after=1.0)
