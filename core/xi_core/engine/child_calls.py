"""`Calls`: the requests on their way to a child's server, from xi's form to the sink. `child_server.py` owns one; all on its loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import msgspec

from xi_core.engine.base import ApiRequest, ApiSink
from xi_core.engine.child_address import Address
from xi_core.engine.child_http import BadAnswer, Reply
from xi_core.engine.child_refusal import Refusal
from xi_core.engine.child_words import ServerWords
from xi_core.errors import Unavailable, XiError

log = logging.getLogger(__name__)

DEATH = 1.0
"""Seconds in which a server that has closed its connections is seen to be dead."""
MERGE = 0.002
"""Longest wait, in seconds, of an event for those of other requests, where `MANY` run: a server writes the tokens of one step one after the
other, and to wake the replica, the gateway and the client for each would cost more than to serve them."""
MANY = 4
FIRST = 2
"""Events of a request that don't wait: the first may bring a role only, the second the first token."""
_STREAMED = ("/v1/chat/completions", "/v1/completions")
_ERROR = b'{"error"'
_ABORT, _FAULT = b'"finish_reason":"abort"', b'"finish_reason":"error"'


class _Call:
    """One request on its way."""

    __slots__ = ("lost", "refusal", "request", "sent", "sink", "task")

    def __init__(self, request: ApiRequest, sink: ApiSink) -> None:
        self.request = request
        self.sink = sink
        self.task: asyncio.Task[None] | None = None
        self.sent = 0
        """Events that have gone to the sink one by one."""
        self.refusal: Refusal | None = None
        self.lost = ""
        """Why the server can't finish it."""


class Calls:
    """Sends requests to the server of model `uid` at `address`. Make it on the loop."""

    def __init__(self, words: ServerWords, uid: str, address: Address) -> None:
        self.steps = 0
        """Events that have come: a token each, roughly."""
        self.dead = ""
        """Why no request can be served any more."""
        self._words = words
        self._uid = uid
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, _Call] = {}
        self._over = asyncio.Event()
        self._events: list[tuple[_Call, bytes]] = []
        self._flush_due: asyncio.Handle | None = None

    @property
    def running(self) -> int:
        """Requests on their way."""
        return len(self._calls)

    def begin(self, request: ApiRequest, sink: ApiSink) -> None:
        """Start a request; the rest comes through `sink`."""
        call = self._calls[request.id] = _Call(request, sink)
        call.task = asyncio.ensure_future(self._serve(call))
        call.task.add_done_callback(lambda task: self._ended(call, task))

    def cancel(self, id: int) -> None:
        """Hang up, which ends the request in the server. Unknown ids are ignored."""
        call = self._calls.get(id)
        if call is not None and call.task is not None:
            call.task.cancel()

    def end(self, why: str) -> None:
        """The server is dead or is being stopped: fail what runs and whatever comes."""
        self.dead = self.dead or why
        self._over.set()
        for call in self._calls.values():
            call.lost = why
            if call.task is not None:
                call.task.cancel()

    async def _serve(self, call: _Call) -> None:
        """One request to its end. A task that is cancelled before it began runs nothing of this: `_ended` tells the sink."""
        request = call.request
        try:
            reply = await self._exchange(call)
            if call.refusal is None and reply.status != 200:
                call.refusal = self._words.refusal(request, reply.status, reply.body)
            elif request.route not in _STREAMED:
                self._event(call, reply.body)
        except XiError as error:
            call.refusal = Refusal(status=error.status, message=error.message, param=error.param, code=error.code)
        except (OSError, BadAnswer) as error:
            call.refusal = Refusal(status=500, message=await self._why(error))
        except Exception:  # a fault of a subclass must not leave the request open
            name = self._words.name
            log.exception("request %d failed in engine %s", request.id, name)
            call.refusal = Refusal(status=500, message=f"engine {name} failed on this request; the replica's log has the details")

    def _ended(self, call: _Call, task: asyncio.Task[None]) -> None:
        self._flush()
        id, why = call.request.id, call.refusal
        if task.cancelled():  # aborted, or the server is dead
            why = Refusal(status=500, message=call.lost) if call.lost else None
        del self._calls[id]
        if why is None:
            call.sink.done(id)
        else:
            call.sink.failed(id, why.status, why.message, why.param, why.code)
        self._words.ended(call.request)

    async def _exchange(self, call: _Call) -> Reply:
        if self.dead:  # the server has seen nothing of it, so that another replica may take it
            raise Unavailable(self.dead)
        request = call.request
        reply = await self._post(call, self._words.body(request))
        if 400 <= reply.status < 500 and (second := self._words.second_body(request, reply.body)) is not None:
            reply = await self._post(call, second)
        return reply

    async def _post(self, call: _Call, body: dict[str, Any]) -> Reply:
        request = call.request
        full = {**body, "model": request.adapter or self._uid}
        if request.route in _STREAMED:
            full |= {"stream": True, "stream_options": {"include_usage": True}}
        return await self._address.ask("POST", request.route, msgspec.json.encode(full), lambda data: self._event(call, data))

    def _event(self, call: _Call, data: bytes) -> None:
        self.steps += 1
        if call.refusal is not None:
            return
        if data.startswith(_ERROR):
            call.refusal = self._words.refusal(call.request, 500, data)
        elif _ABORT in data or _FAULT in data:
            call.refusal = Refusal(status=500, message=f"engine {self._words.name} gave this answer up; the replica's log may say why")
        else:
            self._put(call, self._words.event(call.request, data))

    def _put(self, call: _Call, data: bytes) -> None:
        """To the sink: the first events of a request at once, later ones with those of other requests."""
        if len(self._calls) < MANY or call.sent < FIRST:
            call.sent += 1
            self._flush()
            call.sink.event(call.request.id, data)
            return
        self._events.append((call, data))
        if self._flush_due is None:
            self._flush_due = self._loop.call_later(MERGE, self._flush)

    def _flush(self) -> None:
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        events, self._events = self._events, []
        for call, data in events:
            call.sink.event(call.request.id, data)

    async def _why(self, error: Exception) -> str:
        """The reason of a broken connection, which is mostly that the server has died a moment ago."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), DEATH)
        return self.dead or f"the server of engine {self._words.name} broke off: {error}"
