"""The token path: raw ASGI from a client's request to a replica's bytes. Copies what the replica rendered and never
decodes a chunk.

`Dispatcher` takes the calls; one `Exchange` carries one of them from its body to the last byte of its answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable

from xi_core.cluster.messages import ReplicaRoute
from xi_core.cluster.routing import RouteRequest
from xi_core.errors import DeadlineExceeded, EngineError, InvalidRequest, Overloaded, ReplicaLost, Unavailable, XiError, envelope
from xi_core.wire.frames import Open
from xi_server.asgi import ClientGone, Message, Receive, Scope, Send, new_request_id, read_body, retry_after_header, send_error, send_whole
from xi_server.limits import Backlog, SlowClient, check_queue
from xi_server.metrics import Metrics
from xi_server.prefix import prefix_chain
from xi_server.replica_link import ReplicaDied, ReplicaFull, ReplicaLink, Stream
from xi_server.route import Route, read_route
from xi_server.table import RoutingTable, ServedModel

log = logging.getLogger(__name__)

TOKEN_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"})
MAX_TRIES = 4
"""Replicas that one request is sent to at most: it may meet several that have just been told to stop."""
MAX_LOSSES = 3
MAX_DEATHS = 2
"""Replicas that may be lost under one request, whatever the reason, and such as may have died of it."""
CLIENT_CLOSED = 499
"""Status in the metrics of a request whose client left."""
STALLED_POLL = 0.05
"""Seconds between looks at replicas that show no life, for a request that only they can take."""
STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
"""The second keeps nginx from holding events back."""


class Dispatcher:
    """Answers `POST` on `TOKEN_PATHS`. One per gateway."""

    def __init__(
        self,
        table: RoutingTable,
        metrics: Metrics,
        *,
        request_timeout: float,
        queue_size: int,
        max_body: int,
        backlog: Backlog | None = None,
    ) -> None:
        self.table = table
        self.metrics = metrics
        self.request_timeout = request_timeout
        self.queue_size = queue_size
        self.max_body = max_body
        self.backlog = backlog or Backlog()
        self.active: set[Exchange] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self, scope, receive, send)
        self.active.add(exchange)
        state = scope.get("state", {})
        state["drop"] = exchange.drop
        try:
            await exchange.run()
        finally:
            del state["drop"]  # a connection keeps its last scope, and would keep the answer with it
            self.active.discard(exchange)

    def tick(self, interval: float) -> None:
        """Called every `interval` seconds, to find clients that read nothing."""
        for exchange in list(self.active):
            exchange.slow.check(interval)
        self.backlog.check()


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_began", "_body", "_dispatcher", "_loop", "_receive", "_request_id", "_scope", "_send", "_started", "_status", "_task", "_tried",
        "_whole", "dropped", "gone", "link", "model", "slow", "stream",
    )  # fmt: skip

    def __init__(self, dispatcher: Dispatcher, scope: Scope, receive: Receive, send: Send) -> None:
        self._dispatcher = dispatcher
        self._scope = scope
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._began = time.monotonic()  # finer than uvloop's clock, which counts milliseconds
        self._request_id = new_request_id()
        self._body = b""
        self._started = False
        self._status = CLIENT_CLOSED
        self._tried: list[ReplicaRoute] = []
        self._whole: tuple[Open, bytes] | None = None
        self.model: ServedModel | None = None
        self.link: ReplicaLink | None = None
        self.stream: Stream | None = None
        self.slow = SlowClient(dispatcher.backlog, self.drop)
        self.gone = False
        """The client has left."""
        self.dropped = False
        """The client was cut off because it read too slowly."""

    async def run(self) -> None:
        """Answer the request, whatever happens. Raises nothing but a cancellation that comes twice."""
        try:
            await self._answer()
        except ClientGone:
            self._status = CLIENT_CLOSED
        except XiError as error:
            await self._refuse(error)
        except asyncio.CancelledError:
            if not self.dropped:
                await self._refuse(Unavailable("the server is being stopped", retry_after=1.0))
        except Exception:
            log.exception("request %s on %s failed", self._request_id, self._scope["path"])
            await self._refuse(XiError(f"internal error; the server's log has it under {self._request_id}"))
        finally:
            self._count()

    async def _answer(self) -> None:
        dispatcher = self._dispatcher
        self._body = await read_body(self._scope, self._receive, dispatcher.max_body)
        route = read_route(self._body)
        if not isinstance(route.model, str):
            raise InvalidRequest(f"the request names no model; ready: {dispatcher.table.names_ready()}", param="model")
        model = self.model = dispatcher.table.find(route.model)
        if model.usable() or model.stalled:
            self._check_queue(model)
        model.open_requests += 1
        watch = self._loop.create_task(self._watch())
        try:
            try:
                await self._try_replicas(model, self._route_request(model, route.model, route))
            finally:
                model.open_requests -= 1
            if self._whole is not None:
                await self._pass_whole(*self._whole)
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """Notice when the client leaves: the only reader of `receive` from here on."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.stream is not None:
            self.stream.wake()

    def _check_queue(self, model: ServedModel) -> None:
        try:
            check_queue(model.route.uid, model.open_requests, model.slots, self._dispatcher.queue_size)
        except Overloaded:
            self._dispatcher.metrics.refusals.add(model.route.uid)
            raise

    def _route_request(self, model: ServedModel, name: str, route: Route) -> RouteRequest:
        path, size, most = self._scope["path"], len(self._body), route.most_tokens
        prefix = prefix_chain(name, route) if model.router.wants_prefix else ()
        return RouteRequest(model.route.uid, path, size, most, model.expected.tokens(path, size, most), prefix)

    async def _try_replicas(self, model: ServedModel, request: RouteRequest) -> None:
        deadline = self._loop.time() + self._dispatcher.request_timeout
        tried = self._tried
        losses = deaths = 0
        lost: ReplicaLost | None = None
        while True:
            await self._wait_while_stalled(model, tried)
            try:
                link = model.choose(request, tried)
            except Unavailable as error:
                raise lost or error from None
            tried.append(link.route)
            may_retry = len(tried) < MAX_TRIES
            try:
                if await self._try(model, link, request, deadline, may_retry):
                    return
            except ReplicaLost as error:
                lost = error.with_traceback(None)  # whose frames hold what the replica sent
                losses += not isinstance(error, ReplicaFull)
                deaths += isinstance(error, ReplicaDied)
                if deaths == MAX_DEATHS:
                    raise _deadly(self._request_id, self._body, tried) from None
                if self._started or losses == MAX_LOSSES or not may_retry or not model.may_take(tried):
                    raise
            self._dispatcher.metrics.retries.add(model.route.uid)
            log.info("request %s goes from replica %s to another", self._request_id, link.route.replica_id)

    async def _wait_while_stalled(self, model: ServedModel, tried: list[ReplicaRoute]) -> None:
        """Where no replica can take the request, but one may that stands still: in seconds it goes on, or is lost."""
        while model.stalled and model.may_take(tried) and not model.has_other(tried):
            if self.gone:
                raise ClientGone
            await asyncio.sleep(STALLED_POLL)

    async def _try(self, model: ServedModel, link: ReplicaLink, request: RouteRequest, deadline: float, may_retry: bool) -> bool:
        """Ask one replica. False when it refused with 503 and another is to be asked; else the client has its answer, or it is `_whole`."""
        self.slow.taken()
        stream = self.stream = Stream(self._loop, self.slow)
        self.link = link
        expected = request.tokens
        link.view.outstanding += 1
        link.view.tokens += expected
        model.router.on_start(request, link.route.replica_id)
        timer = self._loop.call_at(deadline, self._expire, stream)
        judged = False
        try:
            link.submit(stream, request.route, self._body)
            opened = await self._opened(stream)
            timer.cancel()
            link.judge(opened.status < 500)
            judged = True
            if opened.status == 503 and may_retry and model.may_take(self._tried):
                return False
            if opened.content_type.startswith("text/event-stream"):
                await self._relay(stream, opened)
            else:
                self._whole = opened, await self._collected(stream)
            return True
        finally:
            timer.cancel()
            link.view.outstanding -= 1
            link.view.tokens -= expected
            if not judged:
                link.judge(None)
            elif stream.over and stream.error is None and stream.opened is not None and stream.opened.status == 200:
                model.expected.learn(request.route, request.max_tokens, stream.tokens)
            link.release(stream)
            self.slow.taken()
            self._dispatcher.metrics.tokens.add(model.route.uid, by=stream.tokens)
            self.stream = None
            model.router.on_end(request, link.route.replica_id, stream.tokens)

    def _expire(self, stream: Stream) -> None:
        timeout = self._dispatcher.request_timeout
        error = DeadlineExceeded(f"no answer has begun within {timeout:g} s (XI_REQUEST_TIMEOUT); the model may be overloaded")
        if self.link is not None:
            self.link.release(stream)
        stream.fail(error)

    async def _opened(self, stream: Stream) -> Open:
        while stream.opened is None and not stream.over:
            self._leave_if_stalled(stream)
            await self._change(stream)
        if stream.opened is None:
            raise stream.error or EngineError("the replica ended its answer before it began")
        return stream.opened

    def _leave_if_stalled(self, stream: Stream) -> None:
        """Before the client has got anything: raises `ReplicaLost` where the replica shows no life and there is another."""
        if stream.stalled and self.model is not None and self.model.has_other(self._tried):
            raise ReplicaLost("the replica shows no life; send the request again", retry_after=1.0)

    async def _change(self, stream: Stream) -> None:
        if not self.gone:
            await stream.changed()
        if self.gone:
            raise ClientGone

    async def _relay(self, stream: Stream, opened: Open) -> None:
        """Copy events as they come: those that wait are sent as one. What is lost after the first byte ends in an error event."""
        send, slow, loop, parts = self._send, self.slow, self._loop, stream.parts
        await self._start(opened, STREAM_HEADERS)
        stream.direct = self._direct()
        while True:
            if not parts and not stream.over and not self.gone:
                await stream.changed()
            if self.gone:
                raise ClientGone
            over = stream.over
            if over and stream.error is not None:
                parts.append(self._error_event(stream.error))
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            slow.blocked_since = loop.time()
            await send({"type": "http.response.body", "body": data, "more_body": not over})
            slow.blocked_since = 0.0
            if slow.bytes:
                slow.taken()
            if over:
                return

    async def _collected(self, stream: Stream) -> bytes:
        """An answer that is not streamed, once it is whole: until then another replica may still give it."""
        while not stream.over:
            self._leave_if_stalled(stream)
            await self._change(stream)
        if stream.error is not None:
            raise stream.error
        return b"".join(stream.parts)

    async def _pass_whole(self, opened: Open, body: bytes) -> None:
        """Send what has been collected, when the replica is free again: the client may take it slowly."""
        self._body = b""
        self._begin(opened)
        self.slow.take(len(body))
        content_type = opened.content_type.encode("latin-1")
        extra = retry_after_header(opened.retry_after)
        try:
            await send_whole(self._send_on_time, opened.status, body, self._request_id, content_type, extra)
        finally:
            self.slow.taken()

    async def _send_on_time(self, message: Message) -> None:
        """Send where there is still a client, which is cut off if it doesn't take what came before."""
        if self.gone:
            raise ClientGone
        self.slow.blocked_since = self._loop.time()
        await self._send(message)
        self.slow.blocked_since = 0.0

    def _direct(self) -> Callable[[bytes], bool] | None:
        """The server's own way to write a chunk, where it has one: it saves a wake-up of this coroutine per token."""
        offer = self._scope.get("state", {}).get("direct")
        return offer() if offer is not None else None

    async def _start(self, opened: Open, extra: list[tuple[bytes, bytes]]) -> None:
        self._begin(opened)
        headers = [(b"content-type", opened.content_type.encode("latin-1")), (b"x-request-id", self._request_id.encode()), *extra]
        message: Message = {"type": "http.response.start", "status": opened.status, "headers": headers}
        await self._send(message)

    def _begin(self, opened: Open) -> None:
        self._started = True
        self._status = opened.status
        if self.model is not None and opened.status == 200:
            self._dispatcher.metrics.ttft.observe(time.monotonic() - self._began, self.model.route.uid)

    def _error_event(self, error: XiError) -> bytes:
        self._status = error.status
        log.warning("request %s ends in an error event: %s", self._request_id, error)
        return b"data: " + envelope(error.body()) + b"\n\n"

    async def _refuse(self, error: XiError) -> None:
        """An error as a status, or as a last event of a stream that has begun. Nothing can be said within another answer."""
        self._status = error.status
        if self._started and self._whole is not None:
            log.warning("request %s is cut off within its answer: %s", self._request_id, error)
            if self._cut_off():
                await self._watch()
        elif self._started:
            await self._send({"type": "http.response.body", "body": self._error_event(error), "more_body": False})
        else:
            self._started = True
            await send_error(self._send, error.body(), self._request_id)

    def drop(self, why: str) -> None:
        """Cut a client off that reads too slowly: free its replica's slot and its connection."""
        if self.dropped:
            return
        self.dropped = self.gone = True
        uid = self.model.route.uid if self.model is not None else ""
        log.warning("request %s: the client is cut off, %s", self._request_id, why)
        self._dispatcher.metrics.slow_clients.add(uid)
        if self.link is not None and self.stream is not None:
            self.link.release(self.stream)
        self.slow.taken()
        if not self._cut_off() and self._task is not None:
            self._task.cancel()

    def _cut_off(self) -> bool:
        """End the connection, which wakes a blocked send. False where this server has no way to."""
        abort = self._scope.get("state", {}).get("abort")
        if abort is not None:
            abort()
        return abort is not None

    def _count(self) -> None:
        uid = self.model.route.uid if self.model is not None else ""
        path, metrics = self._scope["path"], self._dispatcher.metrics
        metrics.requests.add(path, uid, str(self._status))
        metrics.duration.observe(time.monotonic() - self._began, path, uid)


def _deadly(request_id: str, body: bytes, tried: list[ReplicaRoute]) -> EngineError:
    """The request took two replicas with it: no third one. The log keeps a fingerprint, never the body."""
    fingerprint = hashlib.sha256(body).hexdigest()[:16]
    lost = " and ".join(route.replica_id for route in tried)
    log.error("request %s lost replicas %s; fingerprint of its body: %s", request_id, lost, fingerprint)
    return EngineError(f"two replicas were lost while they served this request (fingerprint {fingerprint}); it is not tried again")
