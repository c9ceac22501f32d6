"""Calls and notices over a channel: the control plane's conversation between supervisor, workers and gateways.

A conversation is the same on both sides once it stands: either may call, either may notify. The dialling side speaks first, with a
`Hello`; any message counts as a sign of life, and a `Beat` is sent every half second. What travels: `xi_core.transport.vocabulary`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from msgspec import Raw, Struct

from xi_core.errors import (
    ChannelClosed,
    ChannelRefused,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    ProtocolMismatch,
    TransportError,
    XiError,
)
from xi_core.transport.base import Peer, Transport
from xi_core.transport.security import ClientSecurity, ServerSecurity
from xi_core.transport.vocabulary import (
    BEAT_MESSAGE,
    Bye,
    Call,
    Failure,
    Hello,
    Message,
    Notice,
    Result,
    Vocabulary,
    decode,
    encode,
    mismatch,
    name_of,
    objection,
)
from xi_core.wire import PROTOCOL, UNREADABLE

__all__ = ["Calls", "Link", "LinkServer", "Vocabulary", "dial"]

log = logging.getLogger(__name__)

BEAT = 0.5
"""Seconds between beats."""
MISSED = 3
"""Beats in a row without a word from the other side after which the link is closed."""
GREETING = 3.0
"""Seconds in which the other side must answer the first `Hello`; a little more than a transport takes to give up a connection."""
MAX_ANSWERING = 1024
"""Calls of one peer that may be in work at once; one more is refused."""
MAX_REMEMBERED = 4096
"""Ended peers that a server remembers, so as to stay silent about their last messages."""

Calls = Mapping[type[Struct], Callable[[Any], Awaitable[Struct | None]]]
"""What one side answers: a coroutine function per command or notice type. That of a notice returns None."""

_working: set[asyncio.Task[None]] = set()
"""Answers and farewells in work in this process. The loop keeps only weak references to tasks, and these may outlive their link."""


class Link:
    """One conversation with another process. Made by `dial` and `LinkServer`, on the event loop where it is used."""

    def __init__(
        self, vocabulary: Vocabulary, other: str, send: Callable[[bytes], None], hang_up: Callable[[bool], Coroutine[Any, Any, None]]
    ) -> None:
        """`other` names the other side in messages; `hang_up(gently)` gives back what lies below."""
        self.closed = asyncio.Event()
        self.other = other
        self.peer_key = ""
        """The public key of the other side; empty where there is no security, and on the side that dialled."""
        self.peer_name = ""
        """The name that belongs to that key."""
        self.calls: Calls = {}
        self.on_closed: Callable[[], None] = _nothing
        self._vocabulary = vocabulary
        self._send_bytes = send
        self._hang_up = hang_up
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Raw]] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._reason: XiError = ChannelClosed(f"the link to {other} is closed")
        self._missed = 0
        self._silence_allowed = MISSED
        self._timer = self._loop.call_later(BEAT, self._tick)

    async def call(self, command: Struct, timeout: float | None = 30.0) -> Any:
        """The answer to `command`, of the type that the vocabulary gives. `timeout` in seconds; None waits as long as the link lives.

        Raises the error that the other side raised, by its class; `DeadlineExceeded`; `ChannelClosed` when the link is or gets
        closed; `ChannelFull` when the other side doesn't read.
        """
        self._vocabulary.require_command(command)
        self._require_open()
        number, answer = next(self._ids), self._loop.create_future()
        self._waiting[number] = answer
        try:
            with contextlib.suppress(ChannelClosed):  # the link ends with the next beat at most: the reason may still lie unread
                self._send_bytes(encode(Call(number, Raw(encode(command)))))
            async with asyncio.timeout(timeout):
                body = await answer
        except TimeoutError:
            raise DeadlineExceeded(f"{self.other} did not answer {name_of(command)} within {timeout:g} s") from None
        finally:
            del self._waiting[number]
        return self._vocabulary.answer(command, body)

    def notify(self, notice: Struct) -> None:
        """Tell the other side, without waiting. Raises `ChannelClosed`, `ChannelFull`."""
        self._vocabulary.require_notice(notice)
        self._require_open()
        self._send_bytes(encode(Notice(Raw(encode(notice)))))

    async def close(self) -> None:
        """End the conversation: calls in flight on both sides end, the other side is told. Idempotent; `on_closed` is not called."""
        if self.closed.is_set():
            return
        self._say(Bye())
        self._end(ChannelClosed(f"the link to {self.other} was closed on this side"))
        answers = self._answers - {task for task in (asyncio.current_task(),) if task is not None}
        for task in answers:
            task.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        await self._hang_up(True)

    def receive(self, message: bytes) -> None:
        """Take a message from the other side. Called by `dial` and `LinkServer`."""
        if self.closed.is_set():
            return
        self._missed = 0
        try:
            said = decode(message)
        except UNREADABLE as error:
            self.refuse(ProtocolMismatch(f"a message of {len(message)} bytes can't be read: {error}"))
            return
        self._take(said)

    def refuse(self, error: XiError) -> None:
        """Close, and tell the other side why."""
        log.warning("link to %s closed: %s", self.other, error)
        self._say(Bye(error.body()))
        self.lose(error, gently=True)

    def lose(self, reason: XiError, gently: bool = False) -> None:
        """The other side is gone: end calls in flight with `reason` and tell the owner."""
        if self.closed.is_set():
            return
        self._end(reason)
        task = self._loop.create_task(self._hang_up(gently))
        _working.add(task)
        task.add_done_callback(_working.discard)
        self.on_closed()

    def greet(self, first: bool) -> None:
        """Say hello. The dialling side speaks first, and waits for the answer a little longer than for a beat."""
        if first:
            self._silence_allowed = round(GREETING / BEAT)
        self._say(Hello(PROTOCOL))

    def _require_open(self) -> None:
        if self.closed.is_set():
            raise XiError.from_body(self._reason.body())

    def _take(self, said: Message) -> None:
        match said:
            case Call():
                self._answer(said)
            case Result():
                self._settle(said.id, said.answer, None)
            case Failure():
                self._settle(said.id, None, XiError.from_body(said.error))
            case Notice():
                self._note(said)
            case Hello():
                self._silence_allowed = MISSED
                if said.protocol != PROTOCOL:
                    self.refuse(mismatch(said.protocol))
            case Bye():
                reason = XiError.from_body(said.error) if said.error else ChannelClosed(f"{self.other} closed the link")
                if said.error:
                    log.warning("%s closed the link: %s", self.other, reason)
                self.lose(reason)

    def _settle(self, number: int, answer: Raw | None, error: XiError | None) -> None:
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return  # the caller gave up before
        if error is not None:
            waiting.set_exception(error)
        elif answer is not None:
            waiting.set_result(answer)

    def _answer(self, call: Call) -> None:
        if len(self._answers) >= MAX_ANSWERING:
            self._say(Failure(call.id, Overloaded(f"{MAX_ANSWERING} calls of this link are in work already; try again later").body()))
            return
        try:
            command = self._vocabulary.command(call.command)
            respond = self.calls.get(type(command))
            if respond is None:
                raise InvalidRequest(f"this side doesn't answer {name_of(command)}")
        except InvalidRequest as error:
            self._say(Failure(call.id, error.body()))
            return
        self._start(self._respond(call.id, command, respond))

    def _note(self, message: Notice) -> None:
        try:
            notice = self._vocabulary.notice(message.notice)
        except InvalidRequest as error:
            log.warning("notice of %s ignored: %s", self.other, error)
            return
        listen = self.calls.get(type(notice))
        if listen is not None:
            self._start(self._hear(notice, listen))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the link; works start in the order in which their messages came."""
        task = self._loop.create_task(work)
        for tasks in (self._answers, _working):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _respond(self, number: int, command: Struct, respond: Callable[[Any], Awaitable[Struct | None]]) -> None:
        try:
            answer = await respond(command)
            if answer is None:
                raise TypeError(f"the coroutine that answers {name_of(command)} returned None")
            reply: Message = Result(number, Raw(encode(answer)))
        except XiError as error:
            reply = Failure(number, error.body())
        except asyncio.CancelledError:
            self._say(Failure(number, ChannelClosed(f"{name_of(command)} was cancelled on the other side").body()))
            raise
        except Exception:
            log.exception("call %s of %s failed", name_of(command), self.other)
            reply = Failure(number, XiError(f"internal error in {name_of(command)}; the log of the answering process says more").body())
        self._say(reply)

    async def _hear(self, notice: Struct, listen: Callable[[Any], Awaitable[Struct | None]]) -> None:
        try:
            await listen(notice)
        except Exception:
            log.exception("notice %s of %s failed", name_of(notice), self.other)

    def _say(self, message: Message) -> None:
        """Send where a failure means that the link is lost, not that a caller is to be told."""
        if self.closed.is_set():
            return
        try:
            self._send_bytes(encode(message))
        except TransportError as error:
            if not isinstance(message, Bye):
                log.warning("link to %s lost: %s", self.other, error)
                self.lose(error)

    def _tick(self) -> None:
        # Ticks are counted, not seconds: when this process itself stood still, the other side's beats are waiting to be read.
        if self._missed >= self._silence_allowed:
            self.lose(ChannelClosed(f"{self.other} has been silent for {self._missed * BEAT:g} s"))
            return
        self._missed += 1
        self._timer = self._loop.call_later(BEAT, self._tick)
        try:
            self._send_bytes(BEAT_MESSAGE)
        except TransportError as error:
            self.lose(ChannelClosed(f"{self.other} is lost: {error}"))

    def _end(self, reason: XiError) -> None:
        self._timer.cancel()
        self._reason = reason
        self.closed.set()
        for number in self._waiting:
            self._settle(number, None, XiError.from_body(reason.body()))


def dial(
    transport: Transport,
    endpoint: str,
    vocabulary: Vocabulary,
    calls: Calls,
    on_closed: Callable[[], None],
    security: ClientSecurity | None = None,
) -> Link:
    """Start a conversation with the `LinkServer` at `endpoint`; returns at once, and calls made meanwhile wait for the connection.

    `on_closed` is called once when the link ends or can't be made, but not after `link.close()`. Raises `TransportError` for an
    endpoint that can't be dialled at all, `ConfigError` for one that wants security.
    """
    channel = transport.connect(
        endpoint,
        lambda message: link.receive(message),
        lambda: link.lose(channel.error or ChannelClosed(f"{endpoint} is gone, or could not be reached")),
        security,
    )

    async def hang_up(gently: bool) -> None:
        if gently:
            await channel.close()
        else:
            channel.abort()

    link = Link(vocabulary, endpoint, channel.send, hang_up)
    link.calls, link.on_closed = calls, on_closed
    link.greet(first=True)
    return link


class LinkServer:
    """The side that is dialled: one `Link` for each peer that greets in this protocol."""

    def __init__(
        self,
        transport: Transport,
        endpoint: str,
        vocabulary: Vocabulary,
        accept: Callable[[Link], Calls],
        on_closed: Callable[[Link], None],
        security: ServerSecurity | None = None,
    ) -> None:
        """`accept` gets each new link and returns what this side answers on it; an `XiError` that it raises refuses the peer.

        `on_closed` is called once for each accepted link that ends, but not after `link.close()` or `close()` of this side.
        Raises `TransportError` if the endpoint is taken.
        """
        self._vocabulary = vocabulary
        self._accept = accept
        self._on_closed = on_closed
        self._links: dict[Peer, Link] = {}
        self._ended: set[Peer] = set()
        self._security = security
        self._listener = transport.listen(endpoint, self._receive, security)
        self.endpoint = self._listener.endpoint
        """What others dial: with the real port where 0 was asked."""

    async def close(self) -> None:
        """Close every link and stop listening. Idempotent; `on_closed` is not called."""
        await asyncio.gather(*(link.close() for link in list(self._links.values())))
        await self._listener.close()

    def abort(self) -> None:
        """Stop listening at once; for a server that was never used. Idempotent."""
        self._listener.abort()

    def _receive(self, peer: Peer, message: bytes) -> None:
        link = self._links.get(peer)
        if link is not None:
            link.receive(message)
        elif peer not in self._ended:
            self._meet(peer, message)

    def _meet(self, peer: Peer, message: bytes) -> None:
        """Take the first message of a new peer."""
        link = Link(self._vocabulary, f"peer {peer.hex()}", partial(self._listener.send, peer), partial(self._forget, peer))
        link.peer_key = self._listener.key_of(peer)
        error: XiError | None = objection(message) or self._name(link)
        if error is None:
            self._links[peer] = link
            try:
                link.calls = self._accept(link)
            except XiError as refusal:
                error = refusal
            except Exception:
                log.exception("%s could not be accepted", link.other)
                error = XiError("internal error; the log of the process that was dialled says more")
        if error is not None:
            link.refuse(error)
            return
        link.on_closed = partial(self._on_closed, link)
        link.greet(first=False)

    def _name(self, link: Link) -> ChannelRefused | None:
        """Give the link the name of its key. Why it is refused, where the key has been struck off since the handshake."""
        if self._security is not None and link.peer_key:
            name = self._security.allows(link.peer_key)
            if name is None:
                return ChannelRefused("the key of this process is not known here any more")
            link.peer_name = link.other = name
        return None

    async def _forget(self, peer: Peer, gently: bool) -> None:
        self._links.pop(peer, None)
        if len(self._ended) >= MAX_REMEMBERED:
            self._ended.clear()
        self._ended.add(peer)


def _nothing() -> None:
    """What a link tells before it has an owner."""
