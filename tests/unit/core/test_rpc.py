"""`xi_core.transport.rpc` over the in-process transport and over ZeroMQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from msgspec import Struct

from xi_core.errors import (
    ChannelClosed,
    DeadlineExceeded,
    InvalidRequest,
    NoPlacement,
    ProtocolMismatch,
    TransportError,
    Unavailable,
    XiError,
)
from xi_core.testing.waiting import until
from xi_core.transport import rpc, vocabulary
from xi_core.transport.base import Transport
from xi_core.transport.rpc import Calls, Link, LinkServer, Vocabulary, dial
from xi_core.wire import PROTOCOL
from xi_plugins.transports.inproc import InprocTransport
from xi_plugins.transports.zmq import ZmqTransport


class Add(Struct, tag="add"):
    a: int
    b: int


class Sum(Struct):
    total: int


class Fail(Struct, tag="fail"):
    how: str


class Hang(Struct, tag="hang"):
    pass


class News(Struct, tag="news"):
    number: int


class Rumour(Struct, tag="rumour"):
    pass


VOCABULARY = Vocabulary({Add: Sum, Fail: Sum, Hang: Sum}, [News])


async def add(command: Add) -> Sum:
    return Sum(command.a + command.b)


async def fail(command: Fail) -> Sum:
    match command.how:
        case "placement":
            raise NoPlacement("no device would do", param="n_gpu")
        case "retry":
            raise Unavailable("later", retry_after=2.5)
        case "bug":
            raise ValueError("a secret of the other process")
        case "none":
            return None  # type: ignore[return-value]
        case _:
            return Fail("of another type")  # type: ignore[return-value]


class Pair:
    """A server and all that dials it, with what each was told."""

    def __init__(self, transport: Transport, endpoint: str) -> None:
        self.transport = transport
        self.news: list[int] = []
        self.accepted: list[Link] = []
        self.ended: list[Link] = []
        self.dialled: list[Link] = []
        self.closed = 0
        self.hanging = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.server = LinkServer(transport, endpoint, VOCABULARY, self.accept, self.ended.append)

    def accept(self, link: Link) -> Calls:
        self.accepted.append(link)
        return {Add: add, Fail: fail, Hang: self.hang, News: self.hear}

    async def hang(self, command: Hang) -> Sum:
        self.hanging.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def hear(self, news: News) -> None:
        if news.number < 0:
            raise ValueError("bad news")
        self.news.append(news.number)

    def dial(self, calls: Calls | None = None) -> Link:
        link = dial(self.transport, self.server.endpoint, VOCABULARY, calls or {}, self.count)
        self.dialled.append(link)
        return link

    def count(self) -> None:
        self.closed += 1

    async def close(self) -> None:
        for link in self.dialled:
            await link.close()
        await self.server.close()


@pytest.fixture(params=["inproc", "zmq"])
async def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder: Path = tmp_path_factory.mktemp("r")
    pair = (
        Pair(InprocTransport(), f"inproc://{folder.name}") if request.param == "inproc" else Pair(ZmqTransport(), f"ipc://{folder}/r.sock")
    )
    yield pair
    await pair.close()


async def test_call_and_answer(pair: Pair) -> None:
    link = pair.dial()
    answers = await asyncio.gather(*(link.call(Add(i, 1)) for i in range(50)))
    assert [answer.total for answer in answers] == list(range(1, 51))
    assert all(type(answer) is Sum for answer in answers)


async def test_both_sides_may_call(pair: Pair) -> None:
    link = pair.dial({Add: add})
    await link.call(Add(1, 1))
    assert await pair.accepted[0].call(Add(20, 22)) == Sum(42)


async def test_errors_come_by_class(pair: Pair) -> None:
    link = pair.dial()
    with pytest.raises(NoPlacement, match="no device would do") as caught:
        await link.call(Fail("placement"))
    assert caught.value.param == "n_gpu"
    with pytest.raises(Unavailable) as retry:
        await link.call(Fail("retry"))
    assert retry.value.retry_after == 2.5


@pytest.mark.parametrize("how", ["bug", "none"])
async def test_a_bug_is_logged_there_and_hidden_here(pair: Pair, caplog: pytest.LogCaptureFixture, how: str) -> None:
    link = pair.dial()
    with pytest.raises(XiError) as caught:
        await link.call(Fail(how))
    assert type(caught.value) is XiError
    assert caught.value.code == "internal_error"
    assert "secret" not in str(caught.value)
    assert any(record.exc_info for record in caplog.records)
    assert await link.call(Add(1, 1)) == Sum(2)


async def test_an_answer_of_another_type_fails_that_call_only(pair: Pair) -> None:
    link = pair.dial()
    with pytest.raises(ProtocolMismatch, match="answer to Fail"):
        await link.call(Fail("type"))
    assert await link.call(Add(1, 1)) == Sum(2)


async def test_time_out(pair: Pair) -> None:
    link = pair.dial()
    with pytest.raises(DeadlineExceeded, match="Hang"):
        await link.call(Hang(), timeout=0.05)
    assert await link.call(Add(1, 1)) == Sum(2)


async def test_a_command_that_nobody_answers(pair: Pair) -> None:
    link = pair.dial()
    await link.call(Add(1, 1))
    with pytest.raises(InvalidRequest, match="doesn't answer Add"):
        await pair.accepted[0].call(Add(1, 1))


async def test_notices_arrive_in_order_and_a_bad_one_stops_nothing(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    link = pair.dial()
    for number in [1, 2, -1, 3]:
        link.notify(News(number))
    await until(lambda: len(pair.news) == 3)
    assert pair.news == [1, 2, 3]
    assert any(record.exc_info for record in caplog.records)


async def test_words_outside_the_vocabulary_are_mistakes(pair: Pair) -> None:
    link = pair.dial()
    with pytest.raises(TypeError):
        link.notify(Rumour())
    with pytest.raises(TypeError):
        await link.call(Rumour())
    with pytest.raises(TypeError, match="no tag"):
        Vocabulary({Sum: Sum}, [])


async def test_an_unknown_command_fails_that_call_only(pair: Pair) -> None:
    other = Vocabulary({Rumour: Sum}, [Rumour])
    link = dial(pair.transport, pair.server.endpoint, other, {}, pair.count)
    pair.dialled.append(link)
    link.notify(Rumour())
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="doesn't understand"):
            await link.call(Rumour())


async def test_calls_in_flight_end_when_the_server_closes(pair: Pair) -> None:
    link = pair.dial()
    call = asyncio.create_task(link.call(Hang()))
    await pair.hanging.wait()
    await pair.server.close()
    with pytest.raises(ChannelClosed):
        await call
    assert link.closed.is_set()
    assert pair.closed == 1
    assert pair.cancelled.is_set()
    assert pair.ended == []
    with pytest.raises(ChannelClosed):
        await link.call(Add(1, 1))
    with pytest.raises(ChannelClosed):
        link.notify(News(1))


async def test_calls_in_flight_end_when_the_caller_closes(pair: Pair) -> None:
    link = pair.dial()
    call = asyncio.create_task(link.call(Hang()))
    await pair.hanging.wait()
    await link.close()
    await link.close()
    with pytest.raises(ChannelClosed):
        await call
    await until(lambda: pair.ended)
    assert pair.ended == pair.accepted
    assert pair.closed == 0
    assert not pair.cancelled.is_set(), "what was asked for is finished, though nobody hears of it"


async def test_one_link_ends_without_the_others(pair: Pair) -> None:
    first, second = pair.dial(), pair.dial()
    await first.call(Add(1, 1))
    await second.call(Add(1, 1))
    await pair.accepted[0].close()
    await first.closed.wait()
    assert await second.call(Add(1, 1)) == Sum(2)
    assert pair.closed == 1


async def test_a_peer_that_falls_silent_is_closed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "BEAT", 0.02)
    heard: list[bytes] = []
    listener = pair.transport.listen(_another(pair.server.endpoint), lambda peer, message: _hello_once(peer, message))

    def _hello_once(peer: bytes, message: bytes) -> None:
        if not heard:
            listener.send(peer, vocabulary.encode(vocabulary.Hello(PROTOCOL)))
        heard.append(message)

    link = dial(pair.transport, listener.endpoint, VOCABULARY, {}, pair.count)
    call = asyncio.create_task(link.call(Hang()))
    await asyncio.wait_for(link.closed.wait(), 5)
    with pytest.raises(ChannelClosed, match="silent"):
        await call
    assert pair.closed == 1
    await listener.close()


async def test_beats_keep_an_idle_link(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "BEAT", 0.02)
    link = pair.dial()
    await link.call(Add(1, 1))
    await asyncio.sleep(0.3)
    assert not link.closed.is_set()
    assert not pair.accepted[0].closed.is_set()


def _another(endpoint: str) -> str:
    return endpoint.replace(".sock", "2.sock") if endpoint.endswith(".sock") else endpoint + "2"


async def test_another_protocol_is_refused_in_words(pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    link = pair.dial()
    await link.call(Add(1, 1))
    monkeypatch.setattr(rpc, "PROTOCOL", PROTOCOL + 1)
    newer = pair.dial()
    monkeypatch.undo()
    with pytest.raises(ProtocolMismatch, match="same version"):
        await newer.call(Add(1, 1))
    assert await link.call(Add(1, 1)) == Sum(2)
    assert any(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xc1", b"hello", msgspec.msgpack.encode([99, 1]), msgspec.msgpack.encode([2, "x"]), bytes(5000), b"\x93\x04\x01\x81\xa7message\xa1\xff",
     b"\x93\x02\x01" + b"\x91" * 200_000],
)  # fmt: skip
async def test_garbage_closes_that_link_only(pair: Pair, caplog: pytest.LogCaptureFixture, garbage: bytes) -> None:
    good, bad = pair.dial(), pair.dial()
    await good.call(Add(1, 1))
    await bad.call(Add(1, 1))
    bad._send_bytes(garbage)
    await asyncio.wait_for(bad.closed.wait(), 5)
    assert await good.call(Add(1, 1)) == Sum(2)
    assert pair.ended == [pair.accepted[1]]
    assert any(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("first", [b"garbage", vocabulary.BEAT_MESSAGE])
async def test_a_peer_that_does_not_greet_gets_no_link(pair: Pair, first: bytes, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[bytes] = []
    channel = pair.transport.connect(pair.server.endpoint, heard.append, pair.count)
    channel.send(first)
    await until(lambda: heard)
    assert isinstance(vocabulary.decode(heard[0]), vocabulary.Bye)
    warnings = len(caplog.records)
    for _ in range(20):
        channel.send(first)
    link = pair.dial()
    await link.call(Add(1, 1))
    assert len(pair.accepted) == 1
    assert len(caplog.records) == warnings, "one warning for one peer"
    await channel.close()


async def test_accept_may_refuse(pair: Pair) -> None:
    def refuse(link: Link) -> Calls:
        raise Unavailable("two are enough")

    server = LinkServer(pair.transport, _another(pair.server.endpoint), VOCABULARY, refuse, pair.ended.append)
    link = dial(pair.transport, server.endpoint, VOCABULARY, {}, pair.count)
    with pytest.raises(Unavailable, match="two are enough"):
        await link.call(Add(1, 1))
    assert pair.ended == []
    await server.close()


async def test_nobody_there(pair: Pair) -> None:
    link = dial(pair.transport, _another(pair.server.endpoint), VOCABULARY, {}, pair.count)
    with pytest.raises(ChannelClosed, match="could not be reached"):
        await link.call(Add(1, 1))
    assert pair.closed == 1


async def test_a_taken_endpoint(pair: Pair) -> None:
    with pytest.raises(TransportError):
        LinkServer(pair.transport, pair.server.endpoint, VOCABULARY, pair.accept, pair.ended.append)


async def test_one_peer_can_not_pile_up_calls(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "MAX_ANSWERING", 3)
    link = pair.dial()
    calls = [asyncio.create_task(link.call(Hang())) for _ in range(4)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert [type(call.exception()).__name__ for call in done] == ["Overloaded"]
    await link.close()
    results: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["ChannelClosed"] * 3 + ["Overloaded"]


async def test_a_cancelled_call_leaves_nothing(pair: Pair) -> None:
    link = pair.dial()
    call = asyncio.create_task(link.call(Hang()))
    await pair.hanging.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not link._waiting
    assert await link.call(Add(1, 1)) == Sum(2)


@pytest.mark.parametrize("word", [True, False])
async def test_a_call_that_can_not_be_sent_any_more_ends_with_the_link(pair: Pair, monkeypatch: pytest.MonkeyPatch, word: bool) -> None:
    """With the reason, where that lies unread."""
    link = pair.dial()
    await link.call(Add(1, 1))
    if word:
        pair.accepted[0].refuse(Unavailable("two are enough"))
    monkeypatch.setattr(link, "_send_bytes", Mock(side_effect=ChannelClosed("Broken pipe")))
    with pytest.raises(Unavailable if word else ChannelClosed, match="two are enough" if word else "Broken pipe"):
        await link.call(Add(1, 1), timeout=None)
    assert (link.closed.is_set(), pair.closed, link._waiting) == (True, 1, {})
