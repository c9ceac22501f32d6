"""`Line` over a scripted transport: whole answers, refusals by their class, aborts, and what a lost replica means."""

import asyncio
from typing import Any

import pytest

from xi_core.cluster.messages import ReplicaRoute
from xi_core.errors import ChannelClosed, Overloaded, ReplicaLost, Unavailable, XiError
from xi_core.offline.line import Line
from xi_core.offline.private import MAX_REFUSALS, PrivateModel
from xi_core.testing.waiting import until
from xi_core.transport.base import Channel, Transport
from xi_core.wire import frames
from xi_core.wire.frames import Abort, Data, End, Load, Open, Ping, Pong, Step, Submit

ROUTE = ReplicaRoute(replica_id="m-0", incarnation="1", endpoint="ipc:///x", transport="", slots=2)
REFUSAL = b'{"error":{"message":"full","type":"rate_limit_error","param":null,"code":"%s"}}'


class Scripted(Transport, Channel):
    """Keeps what is sent; the test says what comes."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.broken = self.aborted = False

    def connect(self, endpoint: str, on_message: Any, on_lost: Any) -> Channel:
        self.on_message, self.on_lost = on_message, on_lost
        return self

    def listen(self, endpoint: str, on_message: Any) -> Any:
        raise NotImplementedError

    def send(self, message: bytes) -> None:
        if self.broken:
            raise ChannelClosed("gone")
        self.sent.append(frames.decode_from_gateway(message))

    async def close(self, grace: float = 1.0) -> None:
        self.abort()

    def abort(self) -> None:
        self.aborted = True

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.sent if isinstance(one, kind)]

    def say(self, *answer: Any) -> None:
        self.on_message(frames.encode(Step(list(answer))))


@pytest.fixture
async def wire():
    wire = Scripted()
    line = Line(wire, ROUTE)
    yield wire, line
    await line.close()
    assert wire.aborted


async def ask(wire: Scripted, line: Line) -> tuple[asyncio.Task[bytes], int]:
    before = len(wire.of(Submit))
    task = asyncio.create_task(line.ask("/v1/completions", b"{}"))
    await until(lambda: len(wire.of(Submit)) > before)
    return task, wire.of(Submit)[-1].id


async def test_an_answer_in_pieces_beside_another(wire):
    script, line = wire
    first, one = await ask(script, line)
    second, two = await ask(script, line)
    assert one != two
    script.say(Open(two, 200, "application/json"), Open(one, 200, "application/json"), Data(one, b"a"), Data(two, b"x"))
    script.say(Data(one, b"b"), End(one, "stop"), Data(999, b"nobody's"))
    assert await first == b"ab"
    script.say(End(two))
    assert await second == b"x"
    assert not script.of(Abort)


@pytest.mark.parametrize(("code", "status", "error"), [("overloaded", 429, Overloaded), ("unavailable", 503, Unavailable)])
async def test_a_refusal_comes_by_its_class(wire, code, status, error):
    script, line = wire
    task, number = await ask(script, line)
    script.say(Open(number, status, "application/json", 0, 2.5), Data(number, REFUSAL % code.encode()), End(number, code))
    with pytest.raises(error, match="full") as refused:
        await task
    assert refused.value.retry_after == 2.5


async def test_who_leaves_aborts(wire):
    script, line = wire
    task, number = await ask(script, line)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [abort.id for abort in script.of(Abort)] == [number]
    script.say(Data(number, b"late"))


async def test_a_lost_replica_ends_what_is_open_and_what_comes(wire):
    script, line = wire
    task, _ = await ask(script, line)
    script.on_lost()
    with pytest.raises(ReplicaLost):
        await task
    assert line.lost
    with pytest.raises(ReplicaLost):
        await line.ask("/v1/completions", b"{}")


async def test_a_channel_that_takes_nothing_is_lost(wire):
    script, line = wire
    script.broken = True
    with pytest.raises(ReplicaLost):
        await line.ask("/v1/completions", b"{}")
    assert line.lost


async def test_a_message_that_cant_be_read_loses_it(wire):
    script, line = wire
    task, _ = await ask(script, line)
    script.on_message(b"\xff")
    with pytest.raises(ReplicaLost):
        await task


async def test_it_pings_and_takes_pongs(wire):
    script, line = wire
    await until(lambda: len(script.of(Ping)) >= 2)
    script.on_message(frames.encode(Pong(1, "1", Load())))
    assert not line.lost


class Refusing:
    """A replica's line that refuses so often, and then answers."""

    def __init__(self, refusals: list[XiError]) -> None:
        self.refusals = refusals

    async def ask(self, path: str, body: bytes) -> bytes:
        if self.refusals:
            raise self.refusals.pop()
        return b"answer"


def asking(line: Refusing) -> PrivateModel:
    """As far as it asks; without its processes."""

    async def ready() -> Refusing:
        return line

    model = object.__new__(PrivateModel)
    model._ready = ready  # type: ignore[method-assign, assignment]
    return model


async def test_a_queue_that_is_full_is_waited_for_however_long_that_takes() -> None:
    """Only this process asks: it is full of what other threads ask."""
    model = asking(Refusing([Overloaded("full", retry_after=0.001) for _ in range(2 * MAX_REFUSALS)]))
    assert await model._ask("/v1/completions", b"{}") == b"answer"


async def test_a_replica_that_never_takes_anything_is_given_up() -> None:
    model = asking(Refusing([Unavailable("it stops", retry_after=0.001) for _ in range(2 * MAX_REFUSALS)]))
    with pytest.raises(Unavailable, match="it stops"):
        await model._ask("/v1/completions", b"{}")
