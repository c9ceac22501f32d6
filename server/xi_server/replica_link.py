"""One replica as this gateway sees it: its channel, the streams that are open on it, its life signs. Owned by the routing table.

All here runs in callbacks of the event loop. `_on_message` is the hottest code of the gateway: one call per step of the replica, one
turn of its loop per frame.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from xi_core.cluster.messages import ReplicaRoute
from xi_core.cluster.routing import ReplicaView
from xi_core.errors import ChannelClosed, ChannelFull, ConfigError, ReplicaLost, TransportError, XiError
from xi_core.transport.base import Channel, Transport
from xi_core.transport.security import ClientSecurity, KeyPair
from xi_core.wire import UNREADABLE
from xi_core.wire.frames import Abort, Data, Load, Open, Ping, Pong, Submit, decode_from_replica, encode
from xi_server.breaker import Breaker
from xi_server.limits import SlowClient

log = logging.getLogger(__name__)

PING_INTERVAL = 0.25
MISSED_PINGS = 3
"""Pings in a row without an answer after which a replica gets no request, if its process gives no other sign of life either…"""
LOST_PINGS = 12
"""…and after which it is lost, and what it had begun to answer: a machine that stood still for 3 s at most goes on…"""
BUSY_PINGS = 40
"""…and after which it is lost though its process runs: nothing that holds up Python for 10 s ends soon."""
REDIAL_FIRST = 0.25
REDIAL_MOST = 2.0

_ids = itertools.count(1)
"""Ids of requests: unique within this gateway's life, whatever replica they go to."""


class ReplicaDied(ReplicaLost):
    """It had this request when its connection ended, without a word that it stops: it may have died of it."""


class ReplicaFull(ReplicaLost):
    """It had no room for this request, which was not sent; it goes on serving."""


class Stream:
    """One try of one request on one replica: filled by the link's callback, emptied by the request's coroutine."""

    __slots__ = ("_loop", "_wake", "direct", "error", "finish", "id", "opened", "over", "parts", "sent", "slow", "stalled", "tokens")

    def __init__(self, loop: asyncio.AbstractEventLoop, slow: SlowClient) -> None:
        self.id = next(_ids)
        self.sent = False
        """The request has gone out, if only on its way."""
        self.opened: Open | None = None
        self.parts: list[bytes] = []
        """Bytes that the coroutine has still to send."""
        self.direct: Callable[[bytes], bool] | None = None
        """Sends a piece past the coroutine, where nothing waits before it; False when the client doesn't read."""
        self.tokens = 0
        self.finish = ""
        self.over = False
        """Nothing more will come: it has ended, or `error` says what broke it."""
        self.error: XiError | None = None
        self.stalled = False
        """Its replica shows no life. It may go on: only a request that another can take should not wait for that."""
        self.slow = slow
        self._loop = loop
        self._wake: asyncio.Future[None] | None = None

    def changed(self) -> asyncio.Future[None]:
        """Done at the next `wake`. Callers look at the fields first: nothing that came before is waited for."""
        wake = self._wake = self._loop.create_future()
        return wake

    def wake(self) -> None:
        """Let the request's coroutine look again."""
        wake = self._wake
        if wake is not None and not wake.done():
            wake.set_result(None)

    def fail(self, error: XiError) -> None:
        """Nothing more will come, because of `error`."""
        if not self.over:
            self.error = error
            self.over = True
            self.wake()


class ReplicaLink:
    """A replica's channel. `on_change` is called when it becomes usable or unusable, `on_loss` once for each loss."""

    def __init__(
        self,
        route: ReplicaRoute,
        transport: Transport,
        on_change: Callable[[], None],
        on_loss: Callable[[], None],
        keys: Callable[[str], KeyPair | None] = lambda public: None,
    ) -> None:
        """`keys`: those of this public key, which gateways show to replicas on other machines, if the supervisor has told them."""
        self._keys = keys
        self.route = route
        self.load = Load(slots=route.slots)
        self.view = ReplicaView(replica_id=route.replica_id, slots=route.slots, outstanding=0, tokens=0, running=0, waiting=0)
        self.alive = True
        """Whether it counts as living. A new replica does from the start: the supervisor says that it is ready."""
        self.late = False
        """It has not answered the last ping: nothing new goes there as long as another replica answers."""
        self.fell_silent = False
        """It was last left because it answered no pings, not because its connection ended: it need not be dead."""
        self.stalled = False
        """It shows no life and is not lost yet: soon it goes on, or is."""
        self.breaker = Breaker()
        self._transport = transport
        self._on_change = on_change
        self._on_loss = on_loss
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, Stream] = {}
        self._channel: Channel | None = None
        self._unanswered = 0
        self._heard = False
        """Whether it has answered since it was dialled: only then can a request have reached it."""
        self._pings = 0
        self._redial_wait = REDIAL_FIRST
        self._redial_at = 0.0
        self._dial()

    @property
    def fit(self) -> bool:
        """Whether new requests may go to it if there is no better replica."""
        return self.alive and self.load.healthy and not self.load.draining and not self.load.asleep

    @property
    def usable(self) -> bool:
        """Whether new requests may go to it."""
        return self.fit and not self.late and self.breaker.allows

    @property
    def open_streams(self) -> int:
        """Requests of this gateway that are open on it."""
        return len(self._streams)

    def submit(self, stream: Stream, path: str, body: bytes) -> None:
        """Send a request. A replica that can't be sent to is lost, now or once what it had said is read, and the stream with it; one
        that has no room for the request, as where many large ones wait to be sent, only doesn't get it."""
        if self.breaker.state != "closed":
            self.breaker.sent()
            self._on_change()
        self._streams[stream.id] = stream
        try:
            stream.sent = self._send(encode(Submit(stream.id, path, body)))
        except ChannelFull as error:
            log.info("replica %s did not get a request of %d bytes: %s", self.route.replica_id, len(body), error)
            del self._streams[stream.id]
            stream.fail(ReplicaFull("the replica takes no more at the moment; send the request again", retry_after=1.0))

    def judge(self, well: bool | None) -> None:
        """How a request began: `well` with an answer, if only a refusal; not, with a 5xx; None, nobody knows (its client left)."""
        breaker = self.breaker
        allowed = breaker.allows
        if well:
            breaker.succeeded()
        elif well is None:
            breaker.given_up()
        else:
            breaker.failed(self._loop.time())
        if breaker.allows != allowed:
            log.info("replica %s: its circuit breaker is %s", self.route.replica_id, breaker.state)
            self._on_change()

    def release(self, stream: Stream) -> None:
        """The request has no more interest in its answer: abort it unless it is whole."""
        if self._streams.pop(stream.id, None) is not None and not stream.over:
            self._tell(encode(Abort(stream.id)))

    def tick(self, on_time: bool) -> None:
        """Called each `PING_INTERVAL`. `on_time` is False when this process itself stood still, so that answers may lie unread."""
        before = self.fit, self.usable
        self.breaker.tick(self._loop.time())
        if self._channel is None:
            if self._loop.time() >= self._redial_at:
                self._dial()
        else:
            self._listen(self._channel, on_time)
        if (self.fit, self.usable) != before:
            self._on_change()

    def close(self) -> None:
        """Take the link down; open streams count as lost."""
        self.alive = self.stalled = False
        self._drop_channel()
        self._fail_streams("was taken out of service")

    def _listen(self, channel: Channel, on_time: bool) -> None:
        """Judge how long it has not answered, and ask again.

        A process that is busy may answer late, for a library's call can hold all of Python; one that is stopped shows no life at all.
        """
        missed = channel.missed_beats()  # asked at each tick, so that the answers are there when they are needed
        lifeless = min(self._unanswered, missed)
        if on_time and (lifeless >= LOST_PINGS or self._unanswered >= BUSY_PINGS):
            self._lose(f"has not answered {self._unanswered} pings", silent=True)
            return
        if on_time:
            self.late = self.late or self._unanswered > 0
            if self.alive and lifeless >= MISSED_PINGS:
                self._fall_silent()
        self._ping()

    def _fall_silent(self) -> None:
        log.warning("replica %s has not answered %d pings and gets no request until it does", self.route.replica_id, self._unanswered)
        self.alive, self.fell_silent, self.stalled = False, True, True
        self.breaker.failed(self._loop.time())
        self._on_loss()
        self._on_change()
        self._set_stalled(True)

    def _set_stalled(self, stalled: bool) -> None:
        for stream in self._streams.values():
            stream.stalled = stalled
            stream.wake()

    def _dial(self) -> None:
        self._unanswered, self._heard = 0, False
        try:
            self._channel = self._transport.connect(self.route.endpoint, self._on_message, self._on_lost, self._security())
        except (TransportError, ConfigError) as error:
            self._lose(f"can't be reached: {error}")
            return
        self._ping()
        self._unanswered = 0  # the next tick may come at once

    def _security(self) -> ClientSecurity | None:
        """Raises `TransportError` where there is a key to expect, and none to show."""
        if not self.route.key:
            return None
        keys = self._keys(self.route.gateways)
        if keys is None:
            raise TransportError("the supervisor has not told the gateways' keys yet")
        return ClientSecurity(keys, self.route.key)

    def _ping(self) -> None:
        self._pings += 1
        self._unanswered += 1
        self._tell(encode(Ping(self._pings)))

    def _tell(self, message: bytes) -> None:
        """Send what is small: a replica that has no room even for that doesn't read, and is lost."""
        try:
            self._send(message)
        except ChannelFull as error:
            self._lose(f"can't be sent to: {error}")

    def _send(self, message: bytes) -> bool:
        """False where it can't be sent. A connection that has ended is lost only when what came before its end has been read, perhaps
        the word that the replica stops: the channel tells then. Raises `ChannelFull`."""
        if self._channel is None:
            self._fail_streams("is not connected")
            return False
        try:
            self._channel.send(message)
        except ChannelClosed as error:
            log.debug("replica %s: %s", self.route.replica_id, error)
            return False
        except ChannelFull:
            raise
        except TransportError as error:
            self._lose(f"can't be sent to: {error}")
            return False
        return True

    def _on_message(self, message: bytes) -> None:
        try:
            received = decode_from_replica(message)
        except UNREADABLE as error:
            self._lose(f"sent a message that can't be read: {error}")
            return
        if type(received) is Pong:
            self._pong(received)
            return
        streams = self._streams
        for frame in received.frames:
            stream = streams.get(frame.id)
            if stream is None:
                continue  # aborted a moment ago
            kind = type(frame)
            if kind is Data:
                data = frame.data
                stream.tokens += frame.tokens
                slow = stream.slow
                direct = stream.direct
                if direct is not None and not stream.parts and not slow.blocked_since and direct(data):
                    continue
                stream.parts.append(data)
                if slow.blocked_since:
                    slow.add(len(data))
            elif kind is Open:
                stream.opened = frame
            else:
                stream.finish = frame.finish
                stream.over = True
                del streams[frame.id]
            stream.wake()

    def _pong(self, pong: Pong) -> None:
        if pong.incarnation != self.route.incarnation:
            self._lose(f"is another life ({pong.incarnation}) than the routing table's ({self.route.incarnation})")
            return
        self._unanswered, self._heard = 0, True
        before = self.fit, self.usable
        self.late = False
        load = self.load = pong.load
        self.view.running, self.view.waiting = load.running, load.waiting
        if load.slots:
            self.view.slots = load.slots
        if not self.alive:
            log.info("replica %s answers again", self.route.replica_id)
            self.alive, self.stalled = True, False
            self._redial_wait = REDIAL_FIRST
            self._set_stalled(False)
        if (self.fit, self.usable) != before:
            self._on_change()

    def _on_lost(self) -> None:
        known = self._channel.error if self._channel is not None else None
        self._lose(f"can't be reached: {known}" if known else "has closed its channel or can't be reached")

    def _lose(self, why: str, silent: bool = False) -> None:
        was_alive, self.alive = self.alive, False
        self.fell_silent, self.stalled = silent, False
        self._drop_channel()
        self._redial_at = self._loop.time() + self._redial_wait
        self._redial_wait = min(2 * self._redial_wait, REDIAL_MOST)
        if was_alive:
            log.warning("replica %s %s", self.route.replica_id, why)
            self.breaker.failed(self._loop.time())
            self._on_loss()
            self._on_change()
        self._fail_streams(why)

    def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.abort()

    def _fail_streams(self, why: str) -> None:
        streams, self._streams = self._streams, {}
        unexpected = self._heard and not (self.fell_silent or self.load.draining)
        for stream in streams.values():
            kind = ReplicaDied if unexpected and stream.sent else ReplicaLost
            stream.fail(kind(f"the replica that served this request was lost: it {why}; send the request again", retry_after=1.0))
