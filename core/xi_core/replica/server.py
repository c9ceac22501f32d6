"""`ReplicaServer`: the replica's side of the token path. Takes gateways' submissions, sends each one message per step, answers pings."""

from __future__ import annotations

import asyncio
import logging
import time

from xi_core.errors import ChannelFull, TransportError, Unavailable
from xi_core.serving.service import Run, Service
from xi_core.transport.base import Listener, Peer, Transport
from xi_core.transport.port_range import listen
from xi_core.transport.security import KeyPair, ServerSecurity
from xi_core.wire import UNREADABLE, frames
from xi_core.wire.frames import Abort, Data, End, Frame, Ping, Pong, Step, Submit
from xi_core.wire.plan import LaunchPlan

log = logging.getLogger(__name__)


PIECE = 1024 * 1024
"""Bytes of one answer in one message, at most."""
FORGET = 600.0
"""Seconds of silence after which nothing of a gateway is kept."""


class _Gateway:
    """One gateway: its open requests, the frames that wait for the end of this turn of the loop, and when it was last heard."""

    def __init__(self, server: ReplicaServer, peer: Peer) -> None:
        self.peer = peer
        self.requests: dict[int, Run] = {}
        self.heard = time.monotonic()
        self.frames: list[Frame] = []
        self.large = False
        """There are large frames among them, which go in messages of their own."""
        self.stuck = False
        """It didn't read: the frames wait until it is heard of again."""
        self._server = server

    def put(self, frame: Frame) -> None:
        """Take a frame of an answer. A large one goes in pieces, since a message has a largest size."""
        if type(frame) is Data and len(frame.data) > PIECE:
            self.large = True
            for start in range(0, len(frame.data), PIECE):
                self._add(Data(frame.id, frame.data[start : start + PIECE], 0 if start else frame.tokens))
        else:
            self._add(frame)

    def _add(self, frame: Frame) -> None:
        if not self.frames:
            self._server.schedule(self)
        self.frames.append(frame)
        if type(frame) is End:
            self.requests.pop(frame.id, None)


class ReplicaServer:
    """Serves one `Service` at `plan.endpoint` to any number of gateways."""

    def __init__(self, service: Service, transport: Transport) -> None:
        self._service = service
        self._plan = service.plan
        self._loop = asyncio.get_running_loop()
        self._gateways: dict[Peer, _Gateway] = {}
        self._listener: Listener = listen(transport, self._plan.endpoint, self._receive, _security(self._plan))
        self._sweep = self._loop.create_task(self._sweep_silent(), name="sweep-silent-gateways")

    @property
    def endpoint(self) -> str:
        """Where gateways dial."""
        return self._listener.endpoint

    async def close(self, grace: float = 1.0) -> None:
        """Send what is queued, for `grace` seconds at most, and close."""
        self._sweep.cancel()
        await asyncio.gather(self._sweep, return_exceptions=True)
        for gateway in list(self._gateways.values()):
            self._flush(gateway)
        await self._listener.close(grace)

    def tell(self) -> None:
        """Tell all gateways how it is now, without their asking."""
        for gateway in list(self._gateways.values()):
            self._pong(gateway, Ping(0))

    def schedule(self, gateway: _Gateway) -> None:
        """Send a gateway's frames at the end of this turn of the loop: all requests' frames of a step in one message."""
        self._loop.call_soon(self._flush, gateway)

    def _flush(self, gateway: _Gateway) -> None:
        try:
            while gateway.frames:
                step = gateway.frames[:1] if gateway.large else gateway.frames
                self._listener.send(gateway.peer, frames.encode(Step(step)))
                gateway.frames = gateway.frames[len(step) :]
        except ChannelFull as error:
            gateway.stuck = True
            self._give_up(gateway, error.message)
        except TransportError as error:
            self._forget(gateway, error.message)
        else:
            gateway.stuck = gateway.large = False

    def _pong(self, gateway: _Gateway, ping: Ping) -> None:
        try:
            self._listener.send(gateway.peer, frames.encode(Pong(ping.seq, self._plan.incarnation, self._service.load())))
        except ChannelFull:
            log.debug("a gateway doesn't read: no pong for it")
        except TransportError as error:
            self._forget(gateway, error.message)

    def _receive(self, peer: Peer, message: bytes) -> None:
        try:
            received = frames.decode_from_gateway(message)
        except UNREADABLE as error:
            log.warning("a message that can't be read was dropped: %s", error)
            return
        gateway = self._gateways.get(peer)
        if gateway is None:
            gateway = self._gateways[peer] = _Gateway(self, peer)
        gateway.heard = time.monotonic()
        if gateway.stuck:
            self._flush(gateway)
        if isinstance(received, Ping):
            self._pong(gateway, received)
        elif isinstance(received, Submit):
            self._submit(gateway, received)
        else:
            self._abort(gateway, received)

    def _submit(self, gateway: _Gateway, submit: Submit) -> None:
        run = self._service.submit(submit, gateway.put)
        if run is not None and not run.ended:
            gateway.requests[submit.id] = run

    def _abort(self, gateway: _Gateway, abort: Abort) -> None:
        run = gateway.requests.pop(abort.id, None)
        if run is not None:
            self._service.abort(run)

    def _give_up(self, gateway: _Gateway, reason: str) -> None:
        """A gateway takes no answers now: stop its requests, and tell it so in case that it comes back, for it would wait for ever."""
        if gateway.requests:
            log.warning("a gateway takes no answers (%s): %d of its requests are aborted", reason, len(gateway.requests))
        for run in list(gateway.requests.values()):
            self._service.fail(run, Unavailable("the gateway did not take this answer in time; send the request again", retry_after=1.0))

    def _forget(self, gateway: _Gateway, reason: str) -> None:
        """A gateway is gone: nobody reads its answers."""
        self._gateways.pop(gateway.peer, None)
        if gateway.requests:
            log.warning("a gateway is gone (%s): %d of its requests are aborted", reason, len(gateway.requests))
        for run in list(gateway.requests.values()):
            self._service.abort(run)
        gateway.requests.clear()
        gateway.frames = []

    async def _sweep_silent(self) -> None:
        timeout = self._plan.limits.peer_timeout
        last = time.monotonic()
        while True:
            await asyncio.sleep(timeout / 4)
            now = time.monotonic()
            if now - last > timeout / 2:  # this process itself stood still: others' pings may wait unread
                last = now
                continue
            last = now
            for gateway in list(self._gateways.values()):
                if now - gateway.heard > FORGET:
                    self._forget(gateway, f"silent for {FORGET:g} s")
                elif now - gateway.heard > timeout:
                    self._give_up(gateway, f"silent for {timeout:g} s")


def _security(plan: LaunchPlan) -> ServerSecurity | None:
    """Whom a replica lets in that other machines reach: whoever has the gateways' key."""
    security = plan.security
    if security is None:
        return None
    return ServerSecurity(KeyPair(security.public, security.secret), lambda key: "gateway" if key == security.gateways else None)
