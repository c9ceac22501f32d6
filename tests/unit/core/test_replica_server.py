"""The replica's side of the token path, over the in-process transport."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

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


async def test_garbage_is_dropped_and_the_rest_goes_on(server: ReplicaServer) -> None:
    gateway = Gateway(server.endpoint)
    for garbage in (b"", b"\x00", b"\xff" * 100, msgspec.msgpack.encode([99, 1, 2]), msgspec.msgpack.encode({"a": 1})):
        gateway.channel.send(garbage)
    gateway.ask(1)
    assert (await gateway.answer(1)).status == 200


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
