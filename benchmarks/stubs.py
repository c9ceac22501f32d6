"""What stands behind the gateways in `relay.py`: an HTTP server for the router, a replica with a supervisor's script for xi.

    python -m benchmarks.stubs upstream
    python -m benchmarks.stubs replica --runtime DIRECTORY

Both give one token to each running request every `STEP` seconds, with the same bytes, and answer a request that isn't streamed at once.
Each writes one line on its standard output when it is ready: where it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
from collections.abc import Callable

import uvloop

from benchmarks.bodies import CHAT, CHUNK, LAST, MODEL, STEP, WHOLE, read_asked
from xi_core.cluster.messages import ANSWERS, NOTICES, Done, ModelRoute, ReplicaRoute, Subscribe, TableUpdate
from xi_core.transport.base import Listener, Peer
from xi_core.transport.rpc import Calls, Link, LinkServer, Vocabulary
from xi_core.wire.frames import Abort, Data, End, Frame, Load, Open, Ping, Pong, Step, Submit, decode_from_gateway, encode
from xi_plugins.transports.zmq import ZmqTransport

SLOTS = 64
INCARNATION = "stub"


class Pace:
    """Calls `step` every `STEP` seconds while there is anything to do; late steps are not made up for."""

    def __init__(self, step: Callable[[], bool]) -> None:
        """`step` returns whether there is more to do."""
        self._step = step
        self._loop = asyncio.get_running_loop()
        self._running = False
        self._due = 0.0

    def start(self) -> None:
        """Make the first step in `STEP` seconds, unless it runs already."""
        if not self._running:
            self._running = True
            self._due = self._loop.time() + STEP
            self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self._running = self._step()
        if self._running:
            self._due = max(self._due + STEP, self._loop.time())
            self._loop.call_at(self._due, self._tick)


# ---- behind the router: an OpenAI server --------------------------------------------------------


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _whole(body: bytes, content_type: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (content_type, len(body), body)


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = _chunked(CHUNK)
_LAST = _chunked(LAST) + b"0\r\n\r\n"
_ANSWER = _whole(WHOLE)
_GET = {
    b"/v1/models": _whole(b'{"object":"list","data":[{"id":"stub","object":"model","created":1700000000,"owned_by":"stub"}]}'),
    b"/get_model_info": _whole(b'{"model_path":"stub","is_generation":true}'),
    b"/model_info": _whole(b'{"model_path":"stub","is_generation":true}'),
    b"/get_server_info": _whole(b'{"model_path":"stub","served_model_name":"stub","tp_size":1,"dp_size":1}'),
    b"/server_info": _whole(b'{"model_path":"stub","served_model_name":"stub","tp_size":1,"dp_size":1}'),
}
_HEALTHY = _whole(b"{}")


class Upstream:
    """An OpenAI server over plain sockets: one write per stream and step."""

    def __init__(self) -> None:
        self._left: dict[asyncio.Transport, int] = {}
        self._pace = Pace(self._step)

    def answer(self, transport: asyncio.Transport, method: bytes, path: bytes, body: bytes) -> None:
        """Answer a request, now or step by step."""
        if method != b"POST":
            transport.write(_GET.get(path, _HEALTHY))
            return
        asked = read_asked(body)
        if not asked.stream:
            transport.write(_ANSWER)
            return
        self._left[transport] = asked.tokens
        self._pace.start()

    def gone(self, transport: asyncio.Transport) -> None:
        """The other side has hung up."""
        self._left.pop(transport, None)

    def opened(self) -> UpstreamConnection:
        """A new connection."""
        return UpstreamConnection(self)

    def _step(self) -> bool:
        for transport, left in list(self._left.items()):
            if left > 1:
                self._left[transport] = left - 1
                transport.write(_CHUNK)
            else:
                del self._left[transport]
                transport.write(_LAST)
        return bool(self._left)


class UpstreamConnection(asyncio.Protocol):
    """One connection of the router: HTTP/1.1, bodies with a length."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._data = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.gone(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            lines = self._data[:end].split(b"\r\n")
            lengths = [int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")]
            whole = end + 4 + (lengths[0] if lengths else 0)
            if len(self._data) < whole:
                return
            method, path, _ = lines[0].split(b" ", 2)
            body, self._data = self._data[end + 4 : whole], self._data[whole:]
            if method == b"POST" and path == CHAT.encode() and read_asked(body).stream:
                self._transport.write(_STREAM_HEAD)
            self._upstream.answer(self._transport, method, path, body)


async def _serve_upstream() -> None:
    upstream = Upstream()
    server = await asyncio.get_running_loop().create_server(upstream.opened, "127.0.0.1", 0, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


# ---- behind xi's gateway: a replica, and a supervisor that knows of it --------------------------


class StubReplica:
    """The other end of a gateway's token path, as a replica of a model with `SLOTS` slots."""

    def __init__(self, endpoint: str) -> None:
        self._left: dict[tuple[Peer, int], int] = {}
        self._fresh: set[tuple[Peer, int]] = set()
        self._pace = Pace(self._step)
        self._listener: Listener = ZmqTransport().listen(endpoint, self._receive)

    def _receive(self, peer: Peer, data: bytes) -> None:
        message = decode_from_gateway(data)
        match message:
            case Ping():
                self._listener.send(peer, encode(Pong(message.seq, INCARNATION, Load(slots=SLOTS, running=len(self._left)))))
            case Submit():
                self._begin(peer, message)
            case Abort():
                self._left.pop((peer, message.id), None)

    def _begin(self, peer: Peer, message: Submit) -> None:
        asked = read_asked(message.body)
        if asked.stream:
            self._left[peer, message.id] = asked.tokens
            self._fresh.add((peer, message.id))
            self._pace.start()
            return
        id = message.id
        self._listener.send(peer, encode(Step([Open(id, 200, "application/json", 9), Data(id, WHOLE, 1), End(id, "length")])))

    def _step(self) -> bool:
        steps: dict[Peer, list[Frame]] = {}
        for key, left in list(self._left.items()):
            peer, id = key
            frames = steps.setdefault(peer, [])
            if key in self._fresh:
                self._fresh.discard(key)
                frames.append(Open(id, 200, "text/event-stream", 9))
            if left > 1:
                self._left[key] = left - 1
                frames.append(Data(id, CHUNK, 1))
            else:
                del self._left[key]
                frames += Data(id, LAST, 1), End(id, "length")
        for peer, frames in steps.items():
            self._listener.send(peer, encode(Step(frames)))
        return bool(self._left)


def _script(replica: str) -> Callable[[Link], Calls]:
    """A supervisor that knows one launch, ready, with one replica at this endpoint."""
    route = ReplicaRoute(
        replica_id="stub-0", incarnation=INCARNATION, endpoint=replica, transport="xi_plugins.transports.zmq:ZmqTransport", slots=SLOTS
    )
    table = TableUpdate(epoch="stub", version=1, full=True, models=[ModelRoute(uid=MODEL, state="READY", replicas=[route])])

    def accept(link: Link) -> Calls:
        async def subscribe(_: Subscribe) -> Done:
            link.notify(table)
            return Done()

        return {Subscribe: subscribe}

    return accept


async def _serve_replica(runtime: str) -> None:
    endpoint = f"ipc://{runtime}/replica.sock"
    replica = StubReplica(endpoint)
    server = LinkServer(ZmqTransport(), f"ipc://{runtime}/supervisor.sock", Vocabulary(ANSWERS, NOTICES), _script(endpoint), lambda _: None)
    print(server.endpoint, flush=True)
    await asyncio.Event().wait()
    del replica


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    """Run one of the two until killed, or until stdin ends because the benchmark is gone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stubs")
    parser.add_argument("role", choices=("upstream", "replica"))
    parser.add_argument("--runtime", help="directory for the replica's sockets")
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    work = _serve_upstream() if arguments.role == "upstream" else _serve_replica(arguments.runtime)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    main()
