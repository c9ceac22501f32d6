"""The `inproc` transport: channels within one process and one event loop, with the semantics of a real one. For tests and embedding.

Queues are bounded, messages are delivered by the loop and never inside `send`, and a channel learns of a closed listener after the
messages that were queued before.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

from xi_core.errors import ChannelClosed, ChannelFull, TransportError
from xi_core.transport.base import Channel, Listener, Peer, Transport
from xi_core.transport.security import ClientSecurity, ServerSecurity

HIGH_WATER = 1000
"""Messages that may wait in one direction of one channel."""
BATCH = 512
"""Messages delivered in one callback of the loop."""
CONNECT_TIMEOUT = 2.0
"""Seconds in which a listener must appear."""
MAX_MESSAGE = 64 * 1024 * 1024
"""Largest message, in bytes."""

_listeners: dict[str, InprocListener] = {}
_pending: dict[str, list[InprocChannel]] = {}
_peers = itertools.count(1)


class _Queue:
    """One direction of a channel: delivers on the loop, in order, a bounded number of messages at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[bytes], None], limit: int) -> None:
        self._loop = loop
        self._deliver = deliver
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._scheduled = False
        self._held = True
        self._ended: Callable[[], None] | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, message: bytes) -> None:
        if len(message) > MAX_MESSAGE:
            raise TransportError(f"a message of {len(message)} bytes is over the limit of {MAX_MESSAGE}")
        if len(self._messages) >= self._limit:
            raise ChannelFull(f"{self._limit} messages wait to be read; nothing was sent")
        self._messages.append(message)
        self._empty.clear()
        self._schedule()

    def release(self) -> None:
        """Start to deliver: the connection stands."""
        self._held = False
        self._schedule()

    def end(self, ended: Callable[[], None]) -> None:
        """Call `ended` when all that is queued was delivered."""
        self._ended = ended
        self._schedule()

    def drop(self) -> None:
        """Forget what is queued, and deliver nothing more."""
        self._messages.clear()
        self._ended = None
        self._empty.set()

    async def flushed(self, grace: float) -> None:
        """Wait until all is delivered, for `grace` seconds at most."""
        try:
            await asyncio.wait_for(self._empty.wait(), grace)
        except TimeoutError:
            return

    def _schedule(self) -> None:
        if not self._scheduled and not self._held:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        try:
            for _ in range(min(BATCH, len(self._messages))):
                if not self._messages:
                    break  # dropped by what was just delivered
                self._deliver(self._messages.popleft())
        finally:
            if self._messages:
                self._schedule()
            else:
                self._empty.set()
        if not self._messages and self._ended is not None:
            ended, self._ended = self._ended, None
            ended()


class InprocChannel(Channel):
    """Dialling side. Waits for its listener for `CONNECT_TIMEOUT` seconds; what is sent meanwhile is queued."""

    def __init__(self, name: str, on_message: Callable[[bytes], None], on_lost: Callable[[], None], limit: int) -> None:
        self._name = name
        self._on_lost = on_lost
        self._closed = False
        self._listener: InprocListener | None = None
        self._loop = asyncio.get_running_loop()
        self.peer: Peer = b"%d" % next(_peers)
        self.inbox = _Queue(self._loop, on_message, limit)
        self.outbox = _Queue(self._loop, self._hand_over, limit)
        self._timer = self._loop.call_later(CONNECT_TIMEOUT, self.lose)

    def attach(self, listener: InprocListener) -> None:
        """The connection is made."""
        if listener.loop is not self._loop:
            raise TransportError("inproc: both sides must run on one event loop")
        self._timer.cancel()
        self._listener = listener
        listener.channels[self.peer] = self
        self.inbox.release()
        self.outbox.release()

    def send(self, message: bytes) -> None:
        if self._closed or (self._listener is not None and self._listener.closed):
            raise ChannelClosed(f"the channel to inproc://{self._name} is closed")
        self.outbox.put(message)

    async def close(self, grace: float = 1.0) -> None:
        if not self._closed:
            self._closed = True
            await self.outbox.flushed(grace)
            self._detach()

    def abort(self) -> None:
        self._closed = True
        self._detach()

    def lose(self) -> None:
        """The listener is gone or never came."""
        if not self._closed:
            self.abort()
            self._on_lost()

    def _hand_over(self, message: bytes) -> None:
        if self._listener is not None:
            self._listener.on_message(self.peer, message)

    def _detach(self) -> None:
        self._timer.cancel()
        self.inbox.drop()
        self.outbox.drop()
        waiting = _pending.get(self._name, [])
        if self in waiting:
            waiting.remove(self)
        if self._listener is not None:
            self._listener.channels.pop(self.peer, None)


class InprocListener(Listener):
    """Accepting side: knows its channels by peer."""

    def __init__(self, name: str, on_message: Callable[[Peer, bytes], None]) -> None:
        self.endpoint = f"inproc://{name}"
        self.on_message = on_message
        self.loop = asyncio.get_running_loop()
        self.channels: dict[Peer, InprocChannel] = {}
        self._name = name
        self.closed = False

    def send(self, peer: Peer, message: bytes) -> None:
        channel = self.channels.get(peer)
        if channel is None or self.closed:
            raise ChannelClosed(f"{self.endpoint} has no channel {peer!r}")
        channel.inbox.put(message)

    async def close(self, grace: float = 1.0) -> None:
        await asyncio.gather(*(channel.inbox.flushed(grace) for channel in self._shut()))

    def abort(self) -> None:
        self._shut(drop=True)

    def _shut(self, *, drop: bool = False) -> list[InprocChannel]:
        """End every channel, when what is queued was delivered or was dropped, and listen no more; the channels that were open."""
        if self.closed:
            return []
        self.closed = True
        del _listeners[self._name]
        channels = list(self.channels.values())
        self.channels.clear()
        for channel in channels:
            channel.outbox.drop()
            if drop:
                channel.inbox.drop()
            channel.inbox.end(channel.lose)
        return channels


class InprocTransport(Transport):
    """Endpoints `inproc://NAME`; `inproc://*` takes a free name. `high_water` bounds each direction of each channel, in messages."""

    def __init__(self, high_water: int = HIGH_WATER) -> None:
        self._high_water = high_water

    def listen(self, endpoint: str, on_message: Callable[[Peer, bytes], None], security: ServerSecurity | None = None) -> Listener:
        name = _name_of(endpoint)
        if name == "*":
            name = f"auto-{next(_peers)}"
        if name in _listeners:
            raise TransportError(f"inproc://{name} is taken; close its listener or choose another name")
        listener = _listeners[name] = InprocListener(name, on_message)
        for channel in _pending.pop(name, []):
            channel.attach(listener)
        return listener

    def connect(
        self,
        endpoint: str,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[], None],
        security: ClientSecurity | None = None,
    ) -> Channel:
        name = _name_of(endpoint)
        channel = InprocChannel(name, on_message, on_lost, self._high_water)
        listener = _listeners.get(name)
        if listener is not None:
            channel.attach(listener)
        else:
            _pending.setdefault(name, []).append(channel)
        return channel


def _name_of(endpoint: str) -> str:
    scheme, _, name = endpoint.partition("://")
    if scheme != "inproc" or not name:
        raise TransportError(f"'{endpoint}' is no in-process endpoint; write inproc://NAME")
    return name
