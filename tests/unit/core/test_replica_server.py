"""The replica's side of the token path, over the in-process transport."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from xi_core.errors import ChannelFull
from xi_core.replica.process import service_for
from xi_core.replica.server import ReplicaServer
from xi_core.serving.request import CHAT
from xi_core.testing.fakes import CountingEngine
from xi_core.testing.harness import Answer, plan_for
from xi_core.wire import frames
from xi_core.wire.frames import Abort, Data, End, Frame, Open, Ping, Pong, Step, Submit
from xi_core.wire.plan import ServingLimits
from xi_plugins.transports.inproc import InprocTransport


class Gateway:
    """A gateway's end of the channel."""

    def __init__(self, endpoint: str) -> None:
        self.pongs: list[Pong] = []
        self.steps: list[Step] = []
        self.moved = asyncio.Event()
        self.lost = asyncio.Event()
        self.channel = InprocTransport().connect(endpoint, self._receive, self.lost.set)

    def _receive(self, message: bytes) -> None:
        received = frames.decode_from_replica(message)
        if isinstance(received, Pong):
            self.pongs.append(received)
        else:
            self.steps.append(received)
        self.moved.set()

    def send(self, message: Submit | Abort | Ping) -> None:
        self.channel.send(frames.encode(message))

    def ask(self, id: int, **fields: Any) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, **fields}
        self.send(Submit(id, CHAT, msgspec.json.encode(body)))

    def frames_of(self, id: int) -> list[Frame]:
        return [frame for step in self.steps for frame in step.frames if frame.id == id]

    async def until(self, check: Any) -> None:
        async with asyncio.timeout(5):
            while not check():
                self.moved.clear()
                await self.moved.wait()

    async def answer(self, id: int) -> Answer:
        await self.until(lambda: any(isinstance(frame, End) for frame in self.frames_of(id)))
        return Answer(self.frames_of(id))


@pytest.fixture
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ReplicaServer]:
    plan = plan_for("x:Y", "", "fake", pace=0.002, context_length=10**6)
    plan.limits = ServingLimits(peer_timeout=getattr(request, "param", 60.0))
    plan.endpoint = "inproc://replica-server-test"
    engine = CountingEngine()
    service = service_for(plan, engine, engine.load(plan, lambda stage, share: None))
    server = ReplicaServer(service, InprocTransport())
    yield server
    await server.close()
    service.close(2.0)


async def test_open_comes_first_and_end_last(server: ReplicaServer) -> None:
    gateway = Gateway(server.endpoint)
    gateway.ask(1, stream=True)
    answer = await gateway.answer(1)
    kinds = [type(frame) for frame in gateway.frames_of(1)]
    assert kinds[0] is Open
    assert kinds[-1] is End
    assert set(kinds[1:-1]) == {Data}
    assert answer.text.startswith("one two")


async def test_a_step_of_many_requests_is_one_message(server: ReplicaServer) -> None:
    gateway = Gateway(server.endpoint)
    for id in (1, 2, 3):
        gateway.ask(id, stream=True)
    for id in (1, 2, 3):
        await gateway.answer(id)
    assert any(len({frame.id for frame in step.frames}) == 3 for step in gateway.steps)


async def test_gateways_do_not_see_each_others_requests(server: ReplicaServer) -> None:
    one, two = Gateway(server.endpoint), Gateway(server.endpoint)
    one.ask(1)
    two.ask(1, max_tokens=3)
    assert (await two.answer(1)).text == "one"
    assert (await one.answer(1)).text != "one"


async def test_ping_tells_the_load_and_the_incarnation(server: ReplicaServer) -> None:
    gateway = Gateway(server.endpoint)
    gateway.send(Ping(7))
    await gateway.until(lambda: gateway.pongs)
    assert (gateway.pongs[0].seq, gateway.pongs[0].incarnation, gateway.pongs[0].load.slots) == (7, "test", 4)


async def test_abort_frees_the_slot_and_nothing_more_comes(server: ReplicaServer) -> None:
    gateway = Gateway(server.endpoint)
    gateway.ask(1, stream=True, ignore_eos=True, max_tokens=10**5)
    await gateway.until(lambda: gateway.frames_of(1))
    gateway.send(Abort(1))
    await until_idle(gateway)
    assert not any(isinstance(frame, End) for frame in gateway.frames_of(1))


@pytest.mark.parametrize("server", [0.3], indirect=True)
async def test_a_silent_gateway_has_its_requests_aborted(server: ReplicaServer) -> None:
    silent, other = Gateway(server.endpoint), Gateway(server.endpoint)
    stuck_engine_requests = [{"stream": True, "ignore_eos": True, "max_tokens": 10**5, "n": 2}] * 2
    for id, fields in enumerate(stuck_engine_requests):
        silent.ask(id, **fields)
    await until_idle(other)


@pytest.mark.parametrize("server", [0.3], indirect=True)
async def test_a_gateway_that_stood_still_learns_what_became_of_its_requests(server: ReplicaServer) -> None:
    """Without a word it would wait for ever: its channel is fine and its pings are answered again."""
    gateway = Gateway(server.endpoint)
    gateway.ask(1, stream=True, ignore_eos=True, max_tokens=10**5)
    gateway.ask(2, ignore_eos=True, max_tokens=10**5)
    streamed, whole = await gateway.answer(1), await gateway.answer(2)
    assert (streamed.status, whole.status) == (200, 503)
    for answer in (streamed, whole):
        assert answer.error is not None
        assert answer.error["code"] == "unavailable"
    gateway.ask(3, max_tokens=3)
    assert (await gateway.answer(3)).text == "one"


async def test_frames_that_found_no_room_come_when_the_gateway_reads_again(server: ReplicaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(server.endpoint)
    send, full = server._listener.send, asyncio.Event()

    def no_room(peer: bytes, message: bytes) -> None:
        full.set()
        raise ChannelFull("it doesn't read")

    monkeypatch.setattr(server._listener, "send", no_room)
    gateway.ask(1, stream=True, max_tokens=1)
    gateway.ask(2, ignore_eos=True, max_tokens=10**5, stream=True)
    await asyncio.wait_for(full.wait(), 5)
    monkeypatch.setattr(server._listener, "send", send)
    gateway.send(Ping(1))
    first, second = await gateway.answer(1), await gateway.answer(2)
    assert first.text == "o", "it had ended: nothing of it is lost"
    assert second.error is not None
    await until_idle(gateway)


async def test_a_large_answer_comes_in_pieces(server: ReplicaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message of it could be over the transport's limit, and what can't be sent would take the gateway's other requests along."""
    monkeypatch.setattr("xi_core.replica.server.PIECE", 100)
    gateway = Gateway(server.endpoint)
    gateway.ask(1)
    answer = await gateway.answer(1)
    pieces = [frame for frame in gateway.frames_of(1) if isinstance(frame, Data)]
    assert len(pieces) == -(-len(answer.raw) // 100) > 1
    assert answer.text.startswith("one two")
    assert len(gateway.steps) >= len(pieces)


async def test_a_gateway_that_is_gone_is_forgotten(server: ReplicaServer) -> None:
    gateway = Gateway(server.endpoint)
    gateway.ask(1, stream=True, ignore_eos=True, max_tokens=10**5)
    await gateway.until(lambda: gateway.frames_of(1))
    gateway.channel.abort()
    async with asyncio.timeout(5):
        while server._gateways:
            await asyncio.sleep(0.01)
    assert not server._service.busy


async def test_garbage_is_dropped_and_the_rest_goes_on(server: ReplicaServer) -> None:
    gateway = Gateway(server.endpoint)
    no_utf8, nested = b"\x94\x01\x01\xa1\xff\xc4\x00", b"\x93\x02\x01" + b"\x91" * 200_000
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
    for garbage in (b"", b"\x00", b"\xff" * 100, msgspec.msgpack.encode([99, 1, 2]), msgspec.msgpack.encode({"a": 1}), no_utf8, nested):
        gateway.channel.send(garbage)
    gateway.ask(1)
    assert (await gateway.answer(1)).status == 200
    assert unhandled == []


async def until_idle(gateway: Gateway) -> None:
    async with asyncio.timeout(5):
        seq = 100
        while True:
            seq += 1
            gateway.send(Ping(seq))
            await gateway.until(lambda seq=seq: any(pong.seq == seq for pong in gateway.pongs))
            if gateway.pongs[-1].load.running == 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gateway.lost.wait(), 0.02)
